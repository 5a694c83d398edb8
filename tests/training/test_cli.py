"""`satclip-train` as people and scripts meet it."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import tomllib

import pytest
from click.testing import CliRunner
from factories.runs import Signalling, random_features

from satclip_engine.cli.train import main
from satclip_engine.training.config import flag_of, settings
from satclip_engine.training.inputs import TrainingInputs

SMALL = [
    "--legendre-polys",
    "5",
    "--capacity",
    "16",
    "--embed-dim",
    "8",
    "--dropout",
    "0",
    "--batch-size",
    "180",
    "--epochs",
    "3",
    "--threads",
    "1",
]


@pytest.fixture
def material(monkeypatch, tmp_path):
    """Random features in place of DATA's; the test may put others into the list."""
    monkeypatch.chdir(tmp_path)
    made = [random_features(200)]
    monkeypatch.setattr(
        "satclip_engine.training.inputs.training_inputs",
        lambda *args, **more: TrainingInputs(made[0], None, "made", {}),
    )
    return made


def run(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args])


def assert_one_line(result, code, *fragments):
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("satclip-train: ")
    for fragment in fragments:
        assert fragment in result.stderr


def test_a_run_reports_what_it_did_and_wrote(material):
    result = run("data", "--out", "run", *SMALL)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("run\n  trained        3 steps of 180 samples, 3 epochs, ")
    assert f"on 20 held-out samples, by chance {math.log(20):.4f}" in result.stdout
    assert "wrote          last.ckpt (" in result.stdout
    assert result.stderr.splitlines()[-1].startswith("satclip-train: epoch 3, step 3 of 3: loss ")


def test_quiet_silences_progress_and_json_is_json(material):
    result = run("data", "--out", "run", *SMALL, "-q", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert (report["steps"], report["batch"], report["held_out"]) == (3, 180, 20)
    assert report["files"][0] == "run/last.ckpt"


def test_settings_come_from_the_file_and_flags_override_it(material, tmp_path):
    (tmp_path / "a.toml").write_text(
        "[model]\nlegendre_polys = 4\ncapacity = 8\nembed_dim = 4\n[trainer]\nmax_epochs = 2\n"
    )
    result = run("data", "--out", "run", "--config", "a.toml", "--capacity", 12, "--batch-size", 9, "-q")
    assert result.exit_code == 0, result.output
    written = tomllib.loads((tmp_path / "run/config.toml").read_text())
    assert [written[name] for name in ("legendre_polys", "capacity", "max_epochs")] == [4, 12, 2]


def test_a_folder_with_a_run_is_refused_resumed_or_replaced(material):
    assert run("data", "--out", "run", *SMALL, "-q").exit_code == 0
    assert_one_line(run("data", "--out", "run", *SMALL, "-q"), 1, "run holds a run already", "--resume")
    resumed = run("data", "--out", "run", "--resume", "-q")
    assert resumed.stdout.startswith("run is complete already\n")
    longer = run("data", "--out", "run", "--resume", "--epochs", 5, "-q", "--json")
    assert json.loads(longer.stdout)["steps"] == 5
    other = run("data", "--out", "run", "--resume", "--seed", 4, "-q")
    assert_one_line(other, 2, "other settings: --seed (0 there, 4 now)")
    assert run("data", "--out", "run", *SMALL, "--seed", 4, "--overwrite", "-q").exit_code == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_says_so_in_one_line(material, number, status):
    material[0] = Signalling(random_features(200), number, 4)
    result = run("data", "--out", "run", *SMALL, "--epochs", 90, "-q")
    assert_one_line(result, status, "of 90: resume with --resume")


def test_a_loss_that_is_no_number_is_one_line_and_status_1(material):
    result = run("data", "--out", "run", *SMALL, "--learning-rate", 1e30, "--epochs", 50, "-q")
    assert_one_line(result, 1, "lower --learning-rate")


@pytest.mark.parametrize(
    ("args", "fragment"),
    [
        ([], "give either DATA or --from-raster"),
        (["data", "--from-raster", "a.tif"], "give either DATA or --from-raster"),
        (["data", "--resume", "--overwrite"], "--overwrite and --resume are mutually exclusive"),
        (["data", "-v", "-q"], "-v and -q are mutually exclusive"),
        (["data", "--epochs", "0"], "--epochs: expected a number at least 1, got 0"),
        (["data", "--dropout", "1"], "--dropout: expected a number at least 0 and below 1"),
        (["data", "--image-encoder", "clip"], "'clip' is not one of"),
        (["data", "--config", "absent.toml"], "absent.toml: cannot be read"),
        (["data", "--bands", "1,x"], "not a list of whole numbers"),
        (["data", "--device", "tpu"], "--device: expected auto, cpu, cuda or cuda:N"),
        (["data", "--device", "cuda:99"], "satclip-train: --device 'cuda:99': this machine has"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(material, args, fragment):
    assert_one_line(run("--out", "run", *args), 2, fragment)


def test_an_output_that_is_a_file_is_refused(material, tmp_path):
    (tmp_path / "run").write_text("")
    assert_one_line(run("data", "--out", "run"), 1, "run is a file: give a folder as --out")


def test_help_lists_every_setting_and_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; from satclip_engine.cli.train import main; main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in settings():
        flag = flag_of(name)
        assert flag is None or flag in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_without_torch_the_message_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from satclip_engine.cli.train import main; main(['d', '--out', 'r'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert 'satclip-train needs torch: pip install "satclip-engine[train]"' in done.stderr
