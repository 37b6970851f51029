"""One namespace of one cluster. Plain dicts in and out, as the API sends them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from lora_ops.errors import AuthError, NotFoundError
from tasks.cluster.kubeconfig import open_context, token_end
from tasks.cluster.refusals import AlreadyThere, Asked, refusal, silence

FIELD_MANAGER = "lora-ops"
#: Without this one a list is read from etcd by a quorum; the API server's own cache is new enough.
CACHED = {"resourceVersion": "0"}
NAMES_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

Document = dict[str, Any]


class Server(NamedTuple):
    """`version` such as v1.31.4; `date`: its clock in seconds since the epoch, whole ones."""

    version: str
    date: float | None


class _Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    data: bytes

    def document(self) -> Document:
        found = json.loads(self.data)
        return found if isinstance(found, dict) else {}


class _Kind(NamedTuple):
    resource: str
    namespaced: bool = True


#: The kinds that `apply` knows: those of deployments/kubernetes.
KINDS = {
    "ConfigMap": _Kind("configmaps"),
    "Deployment": _Kind("deployments"),
    "Job": _Kind("jobs"),
    "LimitRange": _Kind("limitranges"),
    "Namespace": _Kind("namespaces", namespaced=False),
    "NetworkPolicy": _Kind("networkpolicies"),
    "PersistentVolumeClaim": _Kind("persistentvolumeclaims"),
    "PodDisruptionBudget": _Kind("poddisruptionbudgets"),
    "ResourceQuota": _Kind("resourcequotas"),
    "Role": _Kind("roles"),
    "RoleBinding": _Kind("rolebindings"),
    "Secret": _Kind("secrets"),
    "Service": _Kind("services"),
    "ServiceAccount": _Kind("serviceaccounts"),
}


class Cluster:
    """The API of one context, in one namespace.

    Every method raises ConfigError (kubeconfig, context, certificate, a manifest that is refused), AuthError
    (401, 403), NotFoundError, ConflictError or UnreachableError: a call that gets no answer within
    `timeout_s` is given up, and none is made twice. Any thread may call; each is best given its own.
    """

    def __init__(
        self, context: str, namespace: str, *, kubeconfig: str | Path | None = None, timeout_s: float = 5.0
    ) -> None:
        self.context = context
        self.namespace = namespace
        self.timeout_s = timeout_s
        self._kubeconfig = kubeconfig
        self._client: Any = None
        self._lock = threading.Lock()

    @property
    def host(self) -> str:
        """The API's URL. Raises what `open` does."""
        return str(self._open().configuration.host)

    def open(self) -> None:
        """Read the kubeconfig; the API is asked nothing. ConfigError names the file or the context."""
        self._open()

    def server(self) -> Server:
        """Its version and its clock."""
        answer = self._request("GET", "/version", Asked(self.context, "get", "version"))
        date = None
        with suppress(TypeError, ValueError):
            date = parsedate_to_datetime(answer.headers["Date"]).timestamp()
        return Server(str(answer.document().get("gitVersion", "?")), date)

    def version(self) -> str:
        """Its version, such as v1.31.4."""
        return self.server().version

    def allowed(self, verb: str, resource: str, group: str = "", subresource: str = "") -> bool:
        """Whether these credentials may do that in the namespace: the API's own word."""
        attributes = {
            "namespace": self.namespace,
            "verb": verb,
            "resource": resource,
            "group": group,
            "subresource": subresource,
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        asked = Asked(self.context, "create", "selfsubjectaccessreviews")
        answer = self._request("POST", path, asked, body=review).document()
        return bool(answer.get("status", {}).get("allowed"))

    def jobs(self, selector: str = "") -> list[Document]:
        """The Jobs with these labels (`a=b,c=d`)."""
        return self.listed("jobs", "batch/v1", selector)

    def pods(self, selector: str = "") -> list[Document]:
        """The pods with these labels."""
        return self.listed("pods", "v1", selector)

    def events(self) -> list[Document]:
        """The namespace's events: an hour's, on most clusters."""
        return self.listed("events", "v1")

    def listed(
        self, resource: str, api: str = "v1", selector: str = "", *, fresh: bool = False
    ) -> list[Document]:
        """All of a resource of the namespace. A namespace that does not exist has none.

        `fresh`: nothing older than this moment, which costs the API more than its cache.
        """
        query = {**({} if fresh else CACHED), **({"labelSelector": selector} if selector else {})}
        asked = Asked(self.context, "list", resource, self.namespace)
        answer = self._request("GET", self._path(api, resource), asked, query=query).document()
        return list(answer.get("items") or [])

    def job(self, name: str) -> Document | None:
        """The Job, or None when there is none."""
        path = self._path("batch/v1", "jobs", name)
        asked = Asked(self.context, "get", "jobs", self.namespace, name)
        try:
            return self._request("GET", path, asked).document()
        except NotFoundError:
            return None

    def exists(self, resource: str, name: str, api: str = "v1") -> bool:
        """Whether there is one of that name. Only its metadata is asked for: a secret stays where it is."""
        asked = Asked(self.context, "get", resource, self.namespace, name)
        try:
            self._request("GET", self._path(api, resource, name), asked, accept=NAMES_ONLY)
        except NotFoundError:
            return False
        return True

    def pod_logs(self, pod: str, tail: int = 1000) -> str:
        """The last lines that a pod printed, 1 MiB at most."""
        path = self._path("v1", "pods", pod) + "/log"
        asked = Asked(self.context, "get", "pods/log", self.namespace, pod)
        query = {"tailLines": str(tail), "limitBytes": str(1 << 20)}
        return self._request("GET", path, asked, query=query, accept="*/*").data.decode(errors="replace")

    def create(self, manifest: Mapping[str, Any]) -> bool:
        """Make it; False when one of that name is there already. NotFoundError without the namespace."""
        path, asked = self._place(manifest, "create")
        try:
            self._request("POST", path, asked, body=manifest)
        except AlreadyThere:
            return False
        return True

    def apply(self, manifests: Iterable[Mapping[str, Any]]) -> list[str]:
        """Make each as its manifest says, server-side: a line for each, such as `roles/x created`.

        A Namespace is left alone by whoever may not change it.
        """
        done = []
        for manifest in manifests:
            name = str(manifest["metadata"]["name"])
            path, asked = self._place(manifest, "patch", name)
            query = {"fieldManager": FIELD_MANAGER, "force": "true"}
            kind = KINDS[manifest["kind"]]
            try:
                answer = self._request("PATCH", path, asked, query=query, body=manifest)
            except AuthError:
                if kind.namespaced:
                    raise
                done.append(f"{kind.resource}/{name} left as it is")
                continue
            done.append(f"{kind.resource}/{name} {'created' if answer.status == 201 else 'applied'}")
        return done

    def delete_job(self, name: str) -> None:
        """Delete the Job and its pods, in the background; silent when there is none."""
        path = self._path("batch/v1", "jobs", name)
        asked = Asked(self.context, "delete", "jobs", self.namespace, name)
        with suppress(NotFoundError):
            self._request("DELETE", path, asked, body={"propagationPolicy": "Background"})

    def namespace_labels(self) -> dict[str, str] | None:
        """The namespace's labels; None when it does not exist."""
        asked = Asked(self.context, "get", "namespaces", name=self.namespace)
        try:
            answer = self._request("GET", f"/api/v1/namespaces/{quote(self.namespace)}", asked)
        except NotFoundError:
            return None
        return dict(answer.document().get("metadata", {}).get("labels") or {})

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _place(self, manifest: Mapping[str, Any], verb: str, name: str = "") -> tuple[str, Asked]:
        kind, meta = KINDS[manifest["kind"]], manifest["metadata"]
        namespace = str(meta.get("namespace") or self.namespace) if kind.namespaced else ""
        asked = Asked(self.context, verb, kind.resource, namespace, str(meta.get("name", "")))
        return self._path(str(manifest["apiVersion"]), kind.resource, name, namespace), asked

    def _path(self, api: str, resource: str, name: str = "", namespace: str | None = None) -> str:
        namespace = self.namespace if namespace is None else namespace
        root = f"/apis/{api}" if "/" in api else f"/api/{api}"
        within = f"/namespaces/{quote(namespace)}" if namespace else ""
        return f"{root}{within}/{resource}" + (f"/{quote(name)}" if name else "")

    def _request(
        self,
        method: str,
        path: str,
        asked: Asked,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        accept: str = "application/json",
    ) -> _Answer:
        """What a success brought; everything else is raised."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        client = self._open()
        kind = "application/apply-patch+yaml" if method == "PATCH" else "application/json"
        given: dict[str, str] = {"Accept": accept, **({"Content-Type": kind} if body is not None else {})}
        where = path + (f"?{urlencode(query)}" if query else "")
        try:
            _, url, headers, _, _ = client.param_serialize(
                method, where, header_params=given, auth_settings=["BearerToken"]
            )
            sent: Any = json.dumps(body) if method == "PATCH" else body
            answer = client.call_api(method, url, headers, sent, _request_timeout=self.timeout_s)
            data = bytes(answer.read() or b"")
        except (ApiException, HTTPError, OSError) as error:
            raise silence(error, asked, client.configuration.host, self.timeout_s) from None
        if answer.status >= 300:
            if answer.status == 401:  # whoever logs in again changes the kubeconfig: read it anew
                self.close()
            raise refusal(answer.status, data.decode(errors="replace"), asked, token_end(client))
        return _Answer(answer.status, answer.getheaders(), data)

    def _open(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = open_context(self.context, self._kubeconfig)
            return self._client
