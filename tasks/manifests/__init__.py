"""Kubernetes manifests of a platform: pure functions of its spec."""

from tasks.manifests.jobs import check_job, job_template, worker_name
from tasks.manifests.platform import pinned, render
from tasks.manifests.serve import serve_manifests
from tasks.manifests.templates import Manifest, dump
from tasks.manifests.worker import worker_manifests

__all__ = [
    "Manifest",
    "check_job",
    "dump",
    "job_template",
    "pinned",
    "render",
    "serve_manifests",
    "worker_manifests",
    "worker_name",
]
