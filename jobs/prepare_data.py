"""Raw images -> lake.

python jobs/prepare_data.py --config jobs/configs/prepare_digits.yaml
python jobs/prepare_data.py --config jobs/configs/prepare_imagenet.yaml --set source.uri=s3://bucket/images
python jobs/prepare_data.py --config ... --without-buried   (without what was purged, a complete lake as well)
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.config import PrepareConfig
from pipeline.runtime import command_line


def run(config: PrepareConfig, dry_run: bool) -> None:
    from pipeline.data import ingest_ray

    if dry_run:
        print(ingest_ray.describe(config))
        return
    prepared = ingest_ray.prepare(config)
    manifest = prepared.lake.manifest
    train, heldout = (
        sum(shard.rows for shard in prepared.lake.shards(split=split)) for split in ("train", "heldout")
    )
    print(
        f"lake {manifest.name}: {train} training rows, {heldout} held out, {len(manifest.classes)} classes,"
        f" {manifest.rejected} rejected"
    )
    for line in manifest.passed_over:
        print(f"  passed over: {line}")
    print(f"  {prepared.lake.uri}  digest {prepared.lake.digest[:16]}")
    if prepared.rewritten:
        labels = ", ".join(map(str, prepared.rewritten))
        print(f"  complete already; classes {labels} written again without what was purged")
    elif prepared.reused:
        print("  complete already, used as it is")
    else:
        resumed = f", {prepared.continued} shards of them by an earlier run" if prepared.continued else ""
        print(f"  made {len(manifest.shards)} shards in {prepared.seconds:.1f} s{resumed}")


if __name__ == "__main__":
    sys.exit(command_line.main(PrepareConfig, run, __doc__, flags=["without_buried"]))
