"""A storage root with the digits lake and weights that were never trained: enough to run every job."""


def fill(root: str) -> None:
    """The lake, DiT-tiny and a judge under `root`, wherever it is."""
    from models.generative import build, dit_description
    from models.judge import build_judge, small_cnn_description
    from pipeline.config import PrepareConfig, parse
    from pipeline.data import ingest_ray
    from pipeline.weights import model_folder

    config = parse(PrepareConfig, {"storage": root, "prepare": {"size": 8, "channels": 1}})
    ingest_ray.prepare(config, run=lambda tasks: map(ingest_ray.make_shard, tasks))
    names = [str(label) for label in range(10)]
    model = dit_description("DiT-tiny", shape=(1, 8, 8), num_classes=10, class_names=names)
    judge = small_cnn_description(shape=(1, 8, 8), num_classes=10, class_names=names)
    model_folder.write(
        model_folder.model_uri(root, "DiT-tiny", "digits"), model, build(model).net.state_dict(), {}
    )
    model_folder.write(
        model_folder.judge_uri(root, "digits"),
        judge,
        build_judge(judge).net.state_dict(),
        {"heldout_accuracy": 0.1},
    )
