"""What an adapter changes in a diffusers pipeline beside weights: new words, and the noise schedule."""

from .errors import AdapterError

# Schedulers of diffusers that know a terminal signal of zero.
ZERO_SNR = (
    "DDPMScheduler",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
)


class Words:
    """The new words of an adapter (textual inversion) in the tokenizers and text encoders of a pipeline."""

    def __init__(self, pipeline, adapter):
        self.pipeline, self.adapter = pipeline, adapter
        self.added = []

    def apply(self):
        for token, vectors in self.adapter.tokens.items():
            for component, values in vectors.items():
                self._add(token, component, values)

    def _add(self, token, component, values):
        import torch

        pipeline = self.pipeline
        encoder = getattr(pipeline, component, None)
        tokenizer = getattr(pipeline, component.replace("text_encoder", "tokenizer"), None)
        name = f"{self.adapter.path} has the new word {token}"
        if encoder is None or tokenizer is None or not hasattr(pipeline, "load_textual_inversion"):
            raise AdapterError(f"{name}, and the {type(pipeline).__name__} has no {component} for it")
        if token in tokenizer.get_vocab():
            raise AdapterError(f"{name}, which the tokenizer has already; unload the other adapter first")
        width = encoder.get_input_embeddings().weight.shape[1]
        if values.shape[1] != width:
            raise AdapterError(f"{name} with {values.shape[1]} numbers where the {component} has {width}")
        vectors = torch.from_numpy(values)
        pipeline.load_textual_inversion({token: vectors}, token=token, tokenizer=tokenizer, text_encoder=encoder)
        self.added.append((token, tokenizer, encoder))

    def undo(self):
        for token, tokenizer, encoder in reversed(self.added):
            self.pipeline.unload_textual_inversion(token, tokenizer=tokenizer, text_encoder=encoder)
        self.added = []


class Schedule:
    """The noise schedule that an adapter was trained with."""

    def __init__(self, pipeline, adapter):
        self.pipeline, self.adapter = pipeline, adapter
        self.before = None

    def apply(self):
        changes = self.adapter.schedule
        if changes is None:
            return
        known = {"prediction_type", "rescale_betas_zero_snr"}
        if not isinstance(changes, dict) or not set(changes) <= known:
            raise AdapterError(f"{self.adapter.path}: the field `schedule` has other fields than {sorted(known)}")
        scheduler = self.pipeline.scheduler
        kind = type(scheduler)
        changes = dict(changes)
        if changes.get("rescale_betas_zero_snr"):
            # Samplers then visit the last timestep, where other classes divide by zero.
            changes["timestep_spacing"] = "trailing"
            if kind.__name__ not in ZERO_SNR:
                import diffusers

                kind = diffusers.DDIMScheduler
                changes.setdefault("clip_sample", scheduler.config.get("clip_sample", False))
                changes.setdefault("set_alpha_to_one", scheduler.config.get("set_alpha_to_one", False))
        self.before = scheduler
        self.pipeline.scheduler = kind.from_config(scheduler.config, **changes)

    def undo(self):
        if self.before is not None:
            self.pipeline.scheduler = self.before
            self.before = None
