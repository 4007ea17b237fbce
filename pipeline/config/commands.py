"""Commands as messages name them: whole, with the caller's storage root, quoted so that a shell takes them as
they stand."""

import json
import shlex

from pipeline.config.reading import CONFIGS, apply_overrides
from pipeline.config.tracking import Registry
from pipeline.uris import join


def command(job: str, config: str, storage_root: str, *overrides: str) -> str:
    """What runs `job` (a script of jobs/, its verb behind it where it has some) on `config`."""
    script, *verb = job.split()
    words = ["python", f"jobs/{script}.py", *verb, "--config", config]
    plain = apply_overrides({}, [f"x={storage_root}"]) == {"x": storage_root}
    root = storage_root if plain else json.dumps(storage_root)  # `/a #b` in quotes, as --set reads YAML
    for override in (f"storage={root}" if storage_root else "", *overrides):
        words += ["--set", override] if override else []
    return shlex.join(words)


def config_for(kind: str, lake: str) -> str:
    """The configuration of `kind` (prepare, pretrain, ...) for a lake: that of jobs/configs, or a name that
    says what to fill in."""
    file = f"{kind}_{lake}.yaml"
    return f"jobs/configs/{file if (CONFIGS / file).is_file() else f'{kind}_<lake>.yaml'}"


def registry_command(verb: str, tracking: Registry, storage_root: str, *overrides: str) -> str:
    """What calls `verb` of the registry for the model of `tracking`."""
    store = [f"tracking.uri={tracking.uri}"] if tracking.uri else []
    model = f"tracking.model_name={tracking.model_name}"
    config = "jobs/configs/registry_digits.yaml"  # of which the model's name is all there is
    return command(f"registry {verb}", config, storage_root, model, *store, *overrides)


def continue_command(storage_root: str, run_id: str) -> str:
    """What goes on with a run of the main job that was begun."""
    return command("unlearn_imagenet", join(storage_root, "runs", run_id, "config.yaml"), storage_root)
