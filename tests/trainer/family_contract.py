"""What every model family has to keep: the loop, the checkpoints and the other processes rely on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.cache import Cache
from trainer.config import config_from
from trainer.data import DatasetReport, check_dataset
from trainer.models.base import Family, Group, RunFacts, Setup
from trainer.models.families import family_of
from trainer.models.sniff import base_of


def family_from(config: dict[str, Any]) -> Family:
    """The family that trains `config`, on the CPU in float32."""
    parsed = config_from(config)
    cache = Cache(parsed.cache_root)
    return family_of(Setup(parsed, base_of(parsed), "digest", cache, torch.device("cpu"), torch.float32))


def prepared(config: dict[str, Any]) -> tuple[Family, list[Any], DatasetReport]:
    """(family, buckets, report) after the first `prepare`."""
    family = family_from(config)
    report = check_dataset(family.config)
    report.raise_if_bad()
    return family, family.prepare(report.items, report), report


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_parameters(groups: list[Group]) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for group in groups for name, parameter in group.parameters.items()}


def moved(groups: list[Group]) -> None:
    """As after a step: no adapter is at its start."""
    rng = generator(3)
    for _, parameter in sorted(all_parameters(groups).items()):
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=rng)


def pair(buckets: list[Any]) -> list[int]:
    """Two samples of one bucket."""
    first = next(place for place, bucket in enumerate(buckets) if buckets.count(bucket) > 1)
    return [first, buckets.index(buckets[first], first + 1)]


class FamilyContract:
    """A family's tests inherit from this and give a `config` of at least two samples that share a bucket.
    `samples`: whether the family writes samples."""

    samples = True

    @pytest.fixture
    def config(self) -> dict[str, Any]:
        raise NotImplementedError

    def test_a_bucket_for_each_new_sample_and_further_ones_are_appended(self, config: dict[str, Any]) -> None:
        family, buckets, report = prepared(config)
        assert buckets
        assert len({hash(bucket) for bucket in buckets}) <= len(buckets)
        count = len(buckets)
        held = family.prepare(report.items, report, training=False)
        assert len(family.sources(range(count + len(held)))) == count + len(held)
        with pytest.raises(IndexError):
            family.sources([count + len(held)])

    def test_the_base_is_frozen_and_the_adapter_is_float32_under_unique_names(
        self, config: dict[str, Any]
    ) -> None:
        family, _, _ = prepared(config)
        groups = family.build()
        names = [name for group in groups for name in group.parameters]
        assert len(set(names)) == len(names) > 0
        assert {parameter.dtype for parameter in all_parameters(groups).values()} == {torch.float32}
        ours = {id(parameter) for parameter in all_parameters(groups).values()}
        for module in family.modules():
            for parameter in module.parameters():
                assert parameter.requires_grad == (id(parameter) in ours)

    def test_the_loss_is_a_sum_that_any_cut_into_micro_batches_gives(self, config: dict[str, Any]) -> None:
        family, buckets, _ = prepared(config)
        moved(family.build())
        batch = pair(buckets)
        before = torch.random.get_rng_state()
        whole = family.loss(batch, [generator(1), generator(2)])
        assert torch.equal(torch.random.get_rng_state(), before)
        assert (whole.dtype, whole.shape) == (torch.float32, torch.Size(()))
        assert whole.requires_grad
        assert torch.equal(whole, family.loss(batch, [generator(1), generator(2)]))
        parts = [family.loss([sample], [generator(seed)]) for sample, seed in zip(batch, (1, 2), strict=True)]
        torch.testing.assert_close(whole, parts[0] + parts[1], rtol=1e-4, atol=1e-5)
        assert family.units(batch) == pytest.approx(sum(family.units([sample]) for sample in batch))

    def test_every_adapter_learns(self, config: dict[str, Any]) -> None:
        family, buckets, _ = prepared(config)
        groups = family.build()
        moved(groups)
        family.loss(pair(buckets), [generator(1), generator(2)]).backward()  # type: ignore[no-untyped-call]
        for name, parameter in all_parameters(groups).items():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().max() > 0, name

    def test_nothing_but_the_parameters_changes_with_a_step(self, config: dict[str, Any]) -> None:
        """A resumed run is a new process with the old parameters."""
        family, buckets, _ = prepared(config)
        groups = family.build()
        batch = pair(buckets)
        family.loss(batch, [generator(1), generator(2)]).backward()  # type: ignore[no-untyped-call]
        moved(groups)
        wanted = family.loss(batch, [generator(4), generator(5)])
        again, _, _ = prepared(config)
        for name, parameter in all_parameters(again.build()).items():
            parameter.data.copy_(all_parameters(groups)[name].data)
        assert torch.equal(again.loss(batch, [generator(4), generator(5)]), wanted)

    def test_the_files_are_below_the_folder_and_the_same_bytes_each_time(
        self, config: dict[str, Any], tmp_path: Path
    ) -> None:
        family, _, _ = prepared(config)
        moved(family.build())
        written: list[dict[str, bytes]] = []
        for place in ("one", "two"):
            folder = tmp_path / place / "adapter"
            folder.mkdir(parents=True)
            files = family.export(folder, RunFacts(step=3, steps=4, samples=2))
            assert files
            assert all(file.is_file() for file in files)
            written.append({str(file.relative_to(folder)): file.read_bytes() for file in files})
        assert written[0] == written[1]

    def test_samples_are_the_same_for_the_same_seed_and_leave_the_training_as_it_was(
        self, config: dict[str, Any], tmp_path: Path
    ) -> None:
        family, buckets, _ = prepared(config)
        moved(family.build())

        def loss() -> Tensor:
            return family.loss(pair(buckets), [generator(1), generator(2)])

        before = loss()
        found = []
        for place in ("one", "two"):
            (tmp_path / place).mkdir()
            files = family.sample(["a picture"], tmp_path / place, 7)
            found.append([file.read_bytes() for file in files])
        assert found[0] == found[1]
        assert bool(found[0]) == self.samples
        after = loss()
        assert torch.equal(before, after)
        assert after.requires_grad
