"""Workers give the very bytes that one process gives: their networks compute with as many threads."""

from concurrent.futures import Future
from importlib import util

import numpy as np
import pytest
import torch

from kits_cascade.inference.nnunet.engine_networks import build_engine, describe_computing
from kits_cascade.inference.nnunet.engines import CPU, FP32, OPENVINO, TORCH, Computing, precisions
from kits_cascade.parallel import default_jobs
from kits_cascade.processor import threads_here
from kits_cascade.runs.predict import predict_folder
from tests.inference.handmade import write_models
from tests.inference.test_engines import unet
from tests.runs.test_runner import write_cases

TILE = (1, 1, 24, 40, 40)
needs_openvino = pytest.mark.skipif(util.find_spec("openvino") is None, reason="OpenVINO is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def threads():
    """Sets PyTorch's number, as the environment of a process does."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def answer(computing):
    network = unet()
    image = torch.randn(TILE, generator=torch.Generator().manual_seed(1))
    return build_engine(network, [network.state_dict()], TILE, computing).network(image.numpy())


@needs_openvino
def test_a_worker_with_fewer_threads_answers_the_same(threads):
    precision = precisions(CPU)[0]
    threads(2)
    alone = answer(Computing(OPENVINO, precision, CPU))
    threads(1)
    assert np.array_equal(answer(Computing(OPENVINO, precision, CPU, threads=2)), alone)


def test_only_openvino_is_told(threads):
    threads(1)
    assert describe_computing(Computing(TORCH, FP32, CPU, threads=3))["threads"] == 1
    assert Computing(TORCH, FP32, CPU, threads=3) == Computing(TORCH, FP32, CPU)


class Seen:
    """An executor that takes down what it is handed, and works at once."""

    def submit(self, work, job, *arguments):
        self.load = job.load
        future = Future()
        future.set_result(work(job, *arguments))
        return future


def test_workers_are_told_the_threads_of_this_process(tmp_path, threads):
    source, results, seen = write_cases(tmp_path / "in", 1), write_models(tmp_path / "models"), Seen()
    for given in (None, 3):
        out = tmp_path / f"out {given}"
        predict_folder(source, out, results, device="cpu", executor=seen, workers=1, threads=given)
        assert seen.load.keywords["threads"] == (given or torch.get_num_threads())


def test_the_number_is_known_without_pytorch(monkeypatch):
    monkeypatch.delitem(__import__("sys").modules, "torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads_here() == 5
    for nothing in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", nothing)
        assert threads_here() == default_jobs()
