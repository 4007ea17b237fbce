"""The ImageNet job on a CPU with random weights of the real size in the published format: import, plan, a
step of both kinds, checkpoint, delta, registration, export; memory beside the plan, seconds where they go.

python tests/real_size.py --storage <root>                               DiT-XL/2: 16 GB, an hour on two cores
python tests/real_size.py --storage <root> --size DiT-nano --pixels 32   the same in small

Its last line is one JSON value. Memory is what a process has of its own (RssAnon), at its highest: pages of a
mapped file are the machine's.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
MIB = 1024  # of the kB in /proc
ROLES = {"driver": ("jobs/",), "worker": ("ray::RayTrainWorker", "ray::_RayTrainWorker", "RayTrainWorker")}


class Peaks(threading.Thread):
    """The highest RssAnon, in MiB, of a process and of what it started, by role."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.mib = pid, dict.fromkeys((*ROLES, "all together"), 0)
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.5):
            now = dict.fromkeys(self.mib, 0)
            for pid in self._family():
                try:
                    status = Path(f"/proc/{pid}/status").read_text()
                    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                except OSError:
                    continue
                lines = [line for line in status.splitlines() if line.startswith("RssAnon")]
                own = int(lines[0].split()[1]) // MIB if lines else 0
                now["all together"] += own
                role = next((r for r, words in ROLES.items() if any(word in command for word in words)), None)
                if role:
                    now[role] = max(now[role], own)
            self.mib = {role: max(peak, now[role]) for role, peak in self.mib.items()}

    def _family(self) -> list[int]:
        parents: dict[int, list[int]] = {}
        for place in Path("/proc").iterdir():
            if place.name.isdigit():
                try:
                    parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
                except OSError:
                    continue
                parents.setdefault(parent, []).append(int(place.name))
        family = [self.pid]
        for pid in family:
            family += parents.get(pid, [])
        return family


def job(name: str, config: str, settings: list[str], *more: str) -> tuple[str, dict[str, int], float]:
    """What the job printed, its peaks and its seconds. Raises `RuntimeError` where it ends with an error."""
    command = [sys.executable, f"jobs/{name}.py", "--config", f"jobs/configs/{config}.yaml", *more]
    command += [part for setting in settings for part in ("--set", setting)]
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peaks = Peaks(process.pid)
    peaks.start()
    said, _ = process.communicate()
    peaks.done.set()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{said[-3000:]}")
    return said, peaks.mib, round(time.monotonic() - started, 1)


def planned_mib(size: str, places: dict[str, str], settings: list[str]) -> int:
    """What the plan says a worker's step takes, weights included."""
    from pipeline import config as configuration
    from pipeline.config import UnlearnConfig
    from pipeline.runs.memory_plan import MemoryPlan
    from pipeline.runs.request_checks import with_own_settings
    from pipeline.weights import model_folder

    path = str(ROOT / "jobs/configs/imagenet_smoke.yaml")
    config = with_own_settings(configuration.load(UnlearnConfig, path, settings))
    described = model_folder.read(places["model.weights"], "model.weights", size=size).config
    return round(MemoryPlan(config, described).need(config.method.hvp).total / 2**20)


def main() -> int:
    import stand_ins

    from pipeline import storage

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--storage", required=True, help="storage root: a local folder")
    parser.add_argument("--size", default="DiT-XL/2")
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    arguments = parser.parse_args()
    root, started = storage.absolute(arguments.storage), time.monotonic()
    places = stand_ins.fill(root, size=arguments.size, pixels=arguments.pixels, kept=False)
    seconds = {"stand-ins": round(time.monotonic() - started, 1)}
    settings = [
        *(f"{key}={place}" for key, place in places.items()),
        *(f"storage={root}", f"model.size={arguments.size}", f"optim.batch_size={arguments.batch}"),
        *("run_id=real-size", "optim.max_steps=2", "trainable=labels_and_adaln:4", "train.workers=1"),
        *("partition.lanes=1", "train.precision=bf16", "train.memory_gib=null", "tracking.artifact=delta"),
        *("evaluate.every=2", "evaluate.samples=20", "evaluate.first_look=null", "evaluate.retain_classes=2"),
        *("evaluate.rotation=null", "evaluate.final_null_samples=0", "evaluate.sampler_steps=1"),
        *("evaluate.final_sampler_steps=1", "evaluate.batch=4", "tracking.pipeline=false"),
    ]
    if arguments.size == "DiT-nano":
        settings[settings.index("trainable=labels_and_adaln:4")] = "trainable=labels_and_adaln:1"
    plan, _, seconds["plan"] = job("unlearn_imagenet", "imagenet_smoke", settings, "--dry-run")
    _, peaks, seconds["job"] = job("unlearn_imagenet", "imagenet_smoke", settings)
    out = f"output={storage.join(root, 'exported.safetensors')}"
    named = [f"storage={root}", "format=safetensors", out]
    _, export, seconds["export"] = job("export", "export_imagenet_smoke", named)
    run = storage.join(root, "runs", "real-size")
    result = storage.read_json(storage.join(run, "result.json"))
    planned = planned_mib(arguments.size, places, settings)
    report = {
        "size": arguments.size,
        "plan": [line for line in plan.splitlines() if line.startswith(("memory plan", "  "))],
        "worker_mib": {"planned": planned, "measured": peaks["worker"]},
        "peaks_mib": {"job": peaks, "export": export},
        "seconds": seconds | {"run": result["timing"]},
        "start_up": storage.read_json(storage.join(run, "timings", "start-up.json")),
        "steps": result["steps"],
        "weights_digest": result["weights_digest"],
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
