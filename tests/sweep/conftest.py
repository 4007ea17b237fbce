"""A storage root with the digits lake and weights that were never trained, on seeds of their own: enough to
run every part of a sweep."""

import pytest


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    import torch

    from models.generative import build, dit_description
    from models.judge import build_judge, small_cnn_description
    from pipeline.config import PrepareConfig, parse
    from pipeline.data import ingest_ray
    from pipeline.weights import model_folder

    root = str(tmp_path_factory.mktemp("sweep"))
    config = parse(PrepareConfig, {"storage": root, "prepare": {"size": 8, "channels": 1}})
    ingest_ray.prepare(config, run=lambda tasks: map(ingest_ray.make_shard, tasks))
    names = [str(label) for label in range(10)]
    model = dit_description("DiT-tiny", shape=(1, 8, 8), num_classes=10, class_names=names)
    judge = small_cnn_description(shape=(1, 8, 8), num_classes=10, class_names=names)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made, judge_net = build(model).net, build_judge(judge).net
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.normal_(std=0.05)
    model_folder.write(model_folder.model_uri(root, "DiT-tiny", "digits"), model, made.state_dict(), {})
    model_folder.write(
        model_folder.judge_uri(root, "digits"), judge, judge_net.state_dict(), {"heldout_accuracy": 0.95}
    )
    return root
