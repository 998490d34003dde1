"""What each job can be told: typed sections with their defaults."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from topa.settings import Section, dump_config, load_config

__all__ = [
    "AlignConfig",
    "DataConfig",
    "FinetuneConfig",
    "ModelConfig",
    "QuestionsConfig",
    "Section",
    "TrainConfig",
    "dump_config",
    "load_config",
]


class ModelConfig(Section):
    """Which LLM and encoder, and what is trained between them.

    Attributes:
        llm: `embedded`, or a folder or hub name of a causal LM.
        encoder: `embedded`, or the name of an encoder of text and images.
        dictionary: Say each frame in words of the training Tideos, one per slot, before the
            projector adds what words leave out (not in the paper).
        variant: The paper's adapter, LoRA, or the projector alone.
        num_frames: Frames that a video or Tideo is sampled to (T).
        slots_per_frame: Positions of the LLM that each frame takes.
        adapter_length: Prompts per layer.
        adapter_layers: Layers from the top that carry an adapter; None means all.
        bias: The attention to video slots starts weakened by this much (g2 = -bias).
        lora_rank: Rank of the LoRA matrices.
        lora_alpha: LoRA scale is lora_alpha / lora_rank.
        dtype: Of the frozen LLM while training; `auto` is bfloat16 where the machine has
            instructions for it, else float32.
        start: Checkpoint (`embedded` or a folder) of the same shape whose trained weights
            training starts from; None means from scratch.
    """

    llm: str = Field("embedded", min_length=1)
    encoder: str = Field("embedded", min_length=1)
    variant: Literal["adapter", "lora", "projector"] = "lora"
    num_frames: PositiveInt = 10
    slots_per_frame: PositiveInt = 1
    dictionary: bool = False
    adapter_length: PositiveInt = 50
    adapter_layers: PositiveInt | None = None
    bias: float = 3.5
    lora_rank: PositiveInt = 16
    lora_alpha: PositiveInt = 32
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    start: str | None = Field(None, min_length=1)


class DataConfig(Section):
    """What is learned from.

    Attributes:
        tideos: `textvid`, or a JSONL file of Tideos.
        extra: More of them to train on: `everyday`, or JSONL files.
        validation: Tideos of `tideos` taken from the end of a seeded shuffle, never trained on.
        tasks: Weight of each task in the draw; they need not sum to 1.
        object_dropout: Probability that a key-object caption is left out of a frame.
        noise: Variance of the Gaussian noise on text features.
        blind: Probability that the video of a contrast sample is masked.
        max_length: Most tokens of a prompt (150 in the paper); None means no limit.
        overlong: What becomes of longer prompts: `cut` takes frames away until they fit, `drop`
            leaves them out. Both are counted in the log; text is never cut.
    """

    tideos: str = Field("textvid", min_length=1)
    extra: list[str] = Field([])
    validation: NonNegativeInt = 60
    tasks: dict[str, NonNegativeFloat] = Field({"choice": 0.5, "caption": 0.25, "open": 0.25})
    object_dropout: float = Field(0.0, ge=0, lt=1)
    noise: NonNegativeFloat = 0.0
    blind: float = Field(0.0, ge=0, le=1)
    max_length: PositiveInt | None = None
    overlong: Literal["cut", "drop"] = "cut"

    @field_validator("tasks")
    @classmethod
    def _some_task_is_drawn(cls, tasks: dict[str, float]) -> dict[str, float]:
        if sum(tasks.values()) <= 0:
            raise ValueError("at least one task needs a weight above 0")
        return tasks


class TrainConfig(Section):
    """How it is learned.

    Attributes:
        seed: Of every random draw.
        epochs: Passes over the training Tideos.
        max_steps: Stop after this many optimizer steps; None means after the epochs.
        minutes: Stop after as many steps as fit, validation not counted; None means no limit.
        batch_size: Samples per forward pass.
        accumulation: Forward passes per optimizer step.
        learning_rate: Peak of the cosine schedule.
        projector_learning_rate: Of the projector; None means learning_rate.
        weight_decay: Of AdamW, on all but the projector.
        contrast_weight: Weight of the choice loss beside the label loss.
        sharpness: Factor of option likelihoods in the choice loss.
        warmup: Fraction of all steps in which the learning rate rises.
        evaluate_every: Steps between validations.
        save_every: Steps between checkpoints.
        ridge_start: Start the projector from a closed-form ridge regression.
        recompute: Compute activations again in the backward pass instead of keeping them.
        compile: Compile the model with torch.compile.
        workers: Processes that prepare batches beside the training; 0 means none.
        parallel: How several processes (torchrun) share the work: `ddp` keeps the LLM whole in
            each, `fsdp` shards it.
        deepspeed: JSON file of DeepSpeed settings (ZeRO stage 0 to 2) instead.
        report_to: Also log to these.
        log_every: Steps between lines of the log.
    """

    seed: NonNegativeInt = 0
    epochs: PositiveFloat = 5
    max_steps: PositiveInt | None = None
    minutes: PositiveFloat | None = None
    batch_size: PositiveInt = 8
    accumulation: PositiveInt = 1
    learning_rate: PositiveFloat = 1e-3
    projector_learning_rate: PositiveFloat | None = None
    weight_decay: NonNegativeFloat = 0.1
    contrast_weight: NonNegativeFloat = 1.0
    sharpness: PositiveFloat = 1.0
    warmup: float = Field(0.05, ge=0, lt=1)
    evaluate_every: PositiveInt = 200
    save_every: PositiveInt = 200
    ridge_start: bool = True
    recompute: bool = False
    compile: bool = False
    workers: NonNegativeInt = 0
    parallel: Literal["ddp", "fsdp"] = "ddp"
    deepspeed: str | None = Field(None, min_length=1)
    report_to: list[Literal["tensorboard", "wandb"]] = Field([])
    log_every: PositiveInt = 10


class AlignConfig(Section):
    """Settings of a pre-alignment.

    Attributes:
        model: Which LLM and encoder, and what is trained between them.
        data: What is learned from.
        train: How it is learned.
        out: Run directory.
    """

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    out: str = Field("runs/align", min_length=1)


class QuestionsConfig(Section):
    """What is fine-tuned on.

    Attributes:
        questions: A benchmark's name, or a file of questions.
        split: Of a benchmark; its training split by default.
        root: Folder of a benchmark's files.
        videos: Folder of the videos.
        features: File or folder of image features, instead of videos.
        validation: Share of the videos that is never trained on.
        tasks: Weight of each task: `choice` (letters, paper), `contrast`, `open`.
        use_memory: Project image features through the memory, as answering does by default.
        noise: Variance of the Gaussian noise on features.
        blind: Probability that the video of a contrast sample is masked.
        max_length: Most tokens of a prompt; None means no limit.
        overlong: What becomes of longer prompts, as in pre-alignment.
    """

    questions: str = Field("questions.jsonl", min_length=1)
    split: str | None = None
    root: str | None = None
    videos: str | None = None
    features: str | None = None
    validation: float = Field(0.1, ge=0, lt=1)
    tasks: dict[str, NonNegativeFloat] = Field({"contrast": 1.0})
    use_memory: bool = True
    noise: NonNegativeFloat = 0.0
    blind: float = Field(0.0, ge=0, le=1)
    max_length: PositiveInt | None = None
    overlong: Literal["cut", "drop"] = "cut"


class FinetuneConfig(Section):
    """Settings of a fine-tuning.

    Attributes:
        start: Checkpoint that is trained on: `embedded` or a folder.
        from_scratch: Take only the shape of that checkpoint, and fresh weights: the paper's
            baseline without pre-alignment.
        llm: Where to find the LLM, if not where the checkpoint says.
        data: What is learned from.
        train: How it is learned.
        out: Run directory.
    """

    start: str = Field("embedded", min_length=1)
    from_scratch: bool = False
    llm: str | None = None
    data: QuestionsConfig = QuestionsConfig()
    train: TrainConfig = TrainConfig()
    out: str = Field("runs/finetune", min_length=1)
