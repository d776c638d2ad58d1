"""docs/formats.md is true of what is shipped: its example, its command, and its student's step."""

import json
import re
import shutil
import subprocess
from pathlib import Path

from diffusers import DDIMScheduler

from export.repository.manifest import check_version

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
SHIPPED = ROOT / "model_repository" / "shapes" / "1"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_example_is_the_beginning_of_the_shipped_manifest() -> None:
    *_, example = blocks("json")
    assert (SHIPPED / "manifest.json").read_text(encoding="utf-8").startswith(example)


def test_the_command_prints_the_digest(tmp_path: Path) -> None:
    version = shutil.copytree(SHIPPED, tmp_path / "1")
    (version / "__pycache__").mkdir()
    (line,) = [line for line in TEXT.splitlines() if line.endswith("| sha256sum")]
    command = line.replace("<repository>/<model>/<version>", str(version))
    printed = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert printed.stdout.split()[0] == check_version(version)["digest"]


def test_a_scheduler_of_the_documented_config_takes_its_one_step_at_its_offset() -> None:
    config = json.loads(blocks("json")[0])
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [config["steps_offset"]]
    assert float(scheduler.final_alpha_cumprod) == 1.0


def test_every_key_of_the_shipped_manifest_is_described() -> None:
    for key in json.loads((SHIPPED / "manifest.json").read_text(encoding="utf-8")):
        assert f"`{key}`" in TEXT
