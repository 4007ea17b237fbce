"""Measure any model: a registered version, a run, a checkpoint of a run, or a folder of weights.

python jobs/evaluate.py --config jobs/configs/evaluate_digits.yaml [--set version=champion]
python jobs/evaluate.py --config ... --set 'metrics=[forget_fraction, kid]'
python jobs/evaluate.py --config ... --set version=<run id> --set checkpoint=last
python jobs/evaluate.py --config ... --set version=<folder> --set lake=digits --set 'request.classes=[1]'
python jobs/evaluate.py --config ... --set attack_suite=true --set reference=dit-tiny-digits-without-1
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import storage
from pipeline.config.evaluate import EvaluateConfig
from pipeline.runtime import command_line


def run(config: EvaluateConfig, dry_run: bool) -> None:
    from pipeline.evaluation import evaluate_ray
    from pipeline.reports.evaluation_table import table
    from pipeline.runs import version_evaluation
    from pipeline.runtime import cluster_ray

    evaluation = version_evaluation.check(config)
    output = version_evaluation.output_uri(config, evaluation.facts)
    samples = version_evaluation.samples(config, evaluation, output)
    subject = ", ".join(
        [
            *evaluation.metrics,
            *(["the attack suite"] if evaluation.attacks else []),
            *(["the retrained reference"] if evaluation.facts["reference"] else []),
        ]
    )
    print(f"{evaluation.facts['what']} ({evaluation.facts['weights_digest'][:12]}): {subject}", flush=True)
    for warning in evaluation.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if dry_run:
        print(f"dry run: it can be measured; the result would be written to {output}")
        return
    cluster_ray.connect()
    if samples is not None:
        evaluate_ray.write_samples(evaluation, samples)
        print(f"{samples.images} images for the ADM evaluator: {samples.uri}", flush=True)
    result = evaluate_ray.evaluate(evaluation)
    storage.write_json(output, result)
    print(table(result))
    print(f"\n{result['seconds']:.0f} s on {result['workers']} workers; {output}")


if __name__ == "__main__":
    sys.exit(command_line.main(EvaluateConfig, run, __doc__))
