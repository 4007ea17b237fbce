"""Configuration: one YAML per job, checked before anything is touched."""

from pipeline.config.base import Fraction, JobConfig, Section, Version
from pipeline.config.data import Encoder, Prepare, PrepareConfig, Source
from pipeline.config.pretrain import JudgeOptim, PretrainConfig, PretrainOptim
from pipeline.config.reading import ConfigT, apply_overrides, dump, load, parse, parse_stored, read_yaml
from pipeline.config.reproduce import ReproduceConfig
from pipeline.config.sweep import SweepConfig
from pipeline.config.tools import (
    BenchmarkConfig,
    CompareConfig,
    GenerateConfig,
    RegistryConfig,
    StepBenchmark,
)
from pipeline.config.unlearn import (
    Evaluate,
    Extractor,
    Gate,
    Judge,
    Method,
    Model,
    Optim,
    Partition,
    Request,
    Tracking,
    Train,
    UnlearnConfig,
)

__all__ = [
    "BenchmarkConfig",
    "CompareConfig",
    "ConfigT",
    "Encoder",
    "Evaluate",
    "Extractor",
    "Fraction",
    "Gate",
    "GenerateConfig",
    "JobConfig",
    "Judge",
    "JudgeOptim",
    "Method",
    "Model",
    "Optim",
    "Partition",
    "Prepare",
    "PrepareConfig",
    "PretrainConfig",
    "PretrainOptim",
    "RegistryConfig",
    "ReproduceConfig",
    "Request",
    "Section",
    "Source",
    "StepBenchmark",
    "SweepConfig",
    "Tracking",
    "Train",
    "UnlearnConfig",
    "Version",
    "apply_overrides",
    "dump",
    "load",
    "parse",
    "parse_stored",
    "read_yaml",
]
