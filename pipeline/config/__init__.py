"""Configuration: one YAML per job, checked before anything is touched."""
# ruff: noqa: F401

from pipeline.config.attack import AttackMethodsConfig
from pipeline.config.base import Fraction, JobConfig, Section, Version
from pipeline.config.benchmark import BenchmarkConfig, StepBenchmark
from pipeline.config.compare import CompareConfig
from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.export import ExportConfig
from pipeline.config.generate import GenerateConfig
from pipeline.config.prepare import Encoder, Prepare, PrepareConfig, Source
from pipeline.config.pretrain import JudgeOptim, PretrainConfig, PretrainOptim
from pipeline.config.reading import (
    ConfigT,
    apply_overrides,
    dump,
    load,
    parse,
    parse_given,
    parse_stored,
    plain,
    read_yaml,
)
from pipeline.config.registry import RegistryConfig
from pipeline.config.reproduce import ReproduceConfig
from pipeline.config.request import Request
from pipeline.config.sweep import SweepConfig
from pipeline.config.tracking import Registry, Tracking
from pipeline.config.unlearn import Evaluate, Gate, Method, Optim, Partition, UnlearnConfig
from pipeline.config.weights import Decoder, Extractor, Judge, Model
from pipeline.config.workers import Train, TrainWorkers
