"""``xtuner test``: from the command line to metrics.json."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.stub_endpoint import stub_endpoint
from tests.xtuner.tools.conftest import Trained
from xtuner.cli import main
from xtuner.evaluation.benchmarks import checkpoint_facts
from xtuner.evaluation.seeds import spread


def arguments(trained: Trained, work_dir: Path, *more: str) -> list[str]:
    command = ["test", trained.config, "--checkpoint", str(trained.checkpoint), "--work-dir", str(work_dir)]
    return [*command, *more, *trained.options]


def test_evaluates_and_resumes(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(trained, tmp_path, "--benchmarks", "pope")) == 0
    metrics = json.loads((tmp_path / "pope" / "metrics.json").read_text())
    assert 0 <= metrics["overall"] <= 1 and metrics["num_questions"] == 6 and metrics["num_without_boxes"] == 0
    assert metrics["config"] == trained.config and metrics["checkpoint"] == str(trained.checkpoint)
    assert "pope" in capsys.readouterr().err
    written = (tmp_path / "pope" / "predictions.jsonl").stat()
    answers = (tmp_path / "pope" / "predictions.jsonl").read_text()
    # other batch size, same answers: all stand already, and only the limit's are scored
    assert main([*arguments(trained, tmp_path, "--benchmarks", "pope", "--limit", "1"), "evaluation_batch_size=1"]) == 0
    assert json.loads((tmp_path / "pope" / "metrics.json").read_text())["num_questions"] == 1
    assert (tmp_path / "pope" / "predictions.jsonl").read_text() == answers
    assert written.st_size == (tmp_path / "pope" / "predictions.jsonl").stat().st_size


def test_scores_again_and_reports(trained: Trained, tmp_path: Path) -> None:
    assert main(arguments(trained, tmp_path, "--benchmarks", "pope", "--report")) == 0
    folder = tmp_path / "pope"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (folder / "report.html").exists()
    (folder / "metrics.json").unlink()
    command = ["test", trained.config, "--score-only", "--benchmarks", "pope", "--work-dir", str(tmp_path)]
    assert main([*command, *trained.options]) == 0
    assert json.loads((folder / "metrics.json").read_text()) == metrics


def test_an_exported_folder_answers_like_its_checkpoint(trained: Trained, tmp_path: Path) -> None:
    export = tmp_path / "export"
    convert = ["convert", "pth_to_hf", trained.config, str(trained.checkpoint), str(export)]
    assert main([*convert, *trained.options]) == 0
    found = []
    for name, checkpoint in (("pth", trained.checkpoint), ("folder", export)):
        command = ["test", trained.config, "--checkpoint", str(checkpoint), "--work-dir", str(tmp_path / name)]
        assert main([*command, "--benchmarks", "pope", *trained.options]) == 0
        found.append((tmp_path / name / "pope" / "predictions.jsonl").read_text())
    assert found[0] == found[1]


def test_writes_a_spreadsheet(trained: Trained, tmp_path: Path) -> None:
    assert main(arguments(trained, tmp_path, "--benchmarks", "pope", "--xlsx")) == 0
    assert (tmp_path / "pope" / "pope_predictions.xlsx").stat().st_size > 0


def test_a_copied_checkpoint_is_the_same_and_another_is_not(trained: Trained, tmp_path: Path) -> None:
    copy, other = tmp_path / "copy.pth", tmp_path / "other.pth"
    content = trained.checkpoint.read_bytes()
    copy.write_bytes(content)
    other.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    hashes = [checkpoint_facts(str(path))["checkpoint_sha256"] for path in (trained.checkpoint, copy, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_an_endpoint_in_the_place_of_a_checkpoint(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with stub_endpoint(lambda content: "yes") as stub:
        stub.models = {"far": "someone"}
        command = ["test", trained.config, "--benchmarks", "pope", "--work-dir", str(tmp_path)]
        assert main([*command, "--endpoint", stub.url, *trained.options]) == 0
        metrics = json.loads((tmp_path / "pope" / "metrics.json").read_text())
        assert metrics["model"] == "far" and metrics["yes_ratio"] == 1.0 and len(stub.requests) == 6
        assert "boxes" not in json.dumps(stub.requests)
        assert main([*command, "--endpoint", stub.url, "--endpoint-boxes", "send", *trained.options]) == 0
        assert len(stub.requests) == 12 and stub.requests[-1]["messages"][0]["content"][0]["boxes"]["boxes"]
        both = [*command, "--endpoint", stub.url, "--checkpoint", "x.pth", *trained.options]
        assert main(both) == 1 and "--checkpoint and --endpoint are given" in capsys.readouterr().err


class TestMissingFiles:
    def test_the_others_run_and_the_exit_code_says_so(self, trained: Trained, tmp_path: Path) -> None:
        names = ("--benchmarks", "pope,gqa_testdev", "--limit", "1")
        assert main(arguments(trained, tmp_path, *names)) == 3
        assert (tmp_path / "pope" / "metrics.json").exists() and not (tmp_path / "gqa_testdev").exists()
        assert main(arguments(trained, tmp_path, *names, "--allow-missing")) == 0

    def test_check_files_builds_nothing(self, trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
        command = ["test", trained.config, "--check-files", "--benchmarks"]
        assert main([*command, "pope", *trained.options]) == 0
        assert main([*command, "gqa_testdev", *trained.options]) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--benchmarks", "pop"], "no benchmark 'pop'. Did you mean 'pope'?"),
        (["--benchmarks", "pope", "--limit", "0"], "expected at least 1 question"),
        (["--benchmarks", "pope", "--checkpoint", "absent.pth"], "absent.pth' does not exist"),
    ],
)
def test_mistakes(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(arguments(trained, tmp_path, *more)) == 1
    assert message in capsys.readouterr().err


def test_no_checkpoint(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", trained.config, "--benchmarks", "pope", *trained.options]) == 1
    assert "no --checkpoint given" in capsys.readouterr().err


class TestSeeds:
    def test_one_run_a_seed_and_what_they_have_together(
        self, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = arguments(trained, tmp_path, "--benchmarks", "pope", "--seeds", "3", "4", "--temperature", "1.5")
        assert main(command) == 0
        found = json.loads((tmp_path / "pope" / "seeds.json").read_text())
        runs = [json.loads((tmp_path / f"seed_{seed}" / "pope" / "metrics.json").read_text()) for seed in (3, 4)]
        assert found["seeds"] == {"3": runs[0]["overall"], "4": runs[1]["overall"]}
        assert found["overall"] == pytest.approx(sum(run["overall"] for run in runs) / 2)
        assert runs[0]["generation"]["used"]["temperature"] == 1.5 and runs[0]["generation"]["used"]["do_sample"]
        assert "standard deviation" in " ".join(capsys.readouterr().err.split())

    @pytest.mark.parametrize("more", [["--seeds", "1", "1"], ["--seeds", "1", "--report"]])
    def test_what_does_not_go_together(
        self, trained: Trained, tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(arguments(trained, tmp_path, "--benchmarks", "pope", *more)) == 1
        assert "--seeds" in capsys.readouterr().err


def test_spread_by_hand() -> None:
    def run(score: float | None) -> dict[str, Any]:
        return {"overall": score, "num_questions": 10}

    assert spread({1: run(0.5), 2: run(0.7)}) == {
        "overall": pytest.approx(0.6),
        "standard_deviation": pytest.approx(0.02**0.5),
        "seeds": {"1": 0.5, "2": 0.7},
        "num_questions": 10,
    }
    assert spread({1: run(0.5)})["standard_deviation"] is None
    assert spread({1: run(0.5), 2: run(None)})["overall"] is None


class TestBackend:
    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--backend", "vllm"], "is a checkpoint, but vLLM runs exported folders: run `xtuner convert pth_to_hf"),
            (["--backend", "vllm", "--checkpoint", "absent"], "absent' does not exist"),
            (["--backend", "vllm", "--base", "x.pth"], "--base goes with checkpoints"),
            (["--backend", "vllm", "--endpoint", "http://x/v1"], "--checkpoint and --endpoint are given"),
            (["--backend-options", "seed=1"], "add --backend vllm, or drop them"),
            (["--backend", "vllm", "--launcher", "slurm"], "vLLM starts its own"),
        ],
    )
    def test_refused_before_anything_starts(
        self, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
    ) -> None:
        assert main(arguments(trained, tmp_path, "--benchmarks", "pope", *more)) == 1
        assert message in " ".join(capsys.readouterr().err.split())

    def test_without_a_checkpoint(self, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        command = ["test", trained.config, "--benchmarks", "pope", "--endpoint", "http://x/v1", "--backend", "vllm"]
        assert main([*command, "--work-dir", str(tmp_path), *trained.options]) == 1
        assert "answers in the place of a --checkpoint's own model" in capsys.readouterr().err

    def test_several_processes(
        self,
        trained: Trained,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("NPROC_PER_NODE", "2")
        assert main(arguments(trained, tmp_path, "--benchmarks", "pope", "--backend", "vllm")) == 1
        assert "tensor_parallel_size=N" in capsys.readouterr().err

    @pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is here")
    def test_vllm_is_absent(
        self, exported: Path, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["--benchmarks", "pope", "--backend", "vllm", "--checkpoint", str(exported)]
        assert main(arguments(trained, tmp_path, *command)) == 1
        assert "vLLM is not installed: run 'pip install vllm" in capsys.readouterr().err

    def test_a_folder_of_another_package(
        self, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "llava"}')
        command = ["--benchmarks", "pope", "--backend", "vllm", "--checkpoint", str(tmp_path)]
        assert main(arguments(trained, tmp_path / "out", *command)) == 1
        assert "is a model of type 'llava', for which no package is installed" in capsys.readouterr().err

    def test_options_that_are_none(
        self, exported: Path, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["--benchmarks", "pope", "--backend", "vllm", "--checkpoint", str(exported), "--backend-options", "x"]
        assert main(arguments(trained, tmp_path, *command)) == 1
        assert "--backend-options: " in (said := capsys.readouterr().err) and "key=value" in said

    @pytest.mark.skipif(importlib.util.find_spec("compressed_tensors") is None, reason="needs compressed-tensors")
    def test_a_quantised_folder_on_the_own_engine(self, exported: Path, trained: Trained, tmp_path: Path) -> None:
        assert main(["convert", "quantize", str(exported), str(tmp_path / "few"), "--scheme", "W8A16"]) == 0
        command = ["--benchmarks", "pope", "--checkpoint"]
        for name, folder in (("whole", exported), ("few", tmp_path / "few")):
            assert main(arguments(trained, tmp_path / name, *command, str(folder))) == 0
        found = [(tmp_path / name / "pope" / "predictions.jsonl").read_text() for name in ("whole", "few")]
        assert found[0].count("\n") == found[1].count("\n") == 6


@pytest.fixture(scope="module")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "hf"
    assert main(["convert", "pth_to_hf", trained.config, str(trained.checkpoint), str(folder), *trained.options]) == 0
    return folder
