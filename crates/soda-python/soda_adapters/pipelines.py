"""What an adapter changes in a diffusers pipeline beside weights: new words, and the noise schedule."""

import copy
import weakref

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


# The vocabulary of every pipeline with new words.
_VOCABULARIES = weakref.WeakKeyDictionary()


class Words:
    """The new words of an adapter (textual inversion) in the tokenizers and text encoders of a pipeline.

    Tokenizers and tables of embeddings are replaced by longer copies. The last word that goes brings back the objects
    of the base.
    """

    def __init__(self, pipeline, adapter):
        self.pipeline, self.adapter = pipeline, adapter

    def apply(self):
        if not self.adapter.tokens:
            return
        vocabulary = _VOCABULARIES.get(self.pipeline) or _Vocabulary()
        for token, vectors in self.adapter.tokens.items():
            vocabulary.check(self.pipeline, f"{self.adapter.path} has the new word {token}", token, vectors)
        _VOCABULARIES[self.pipeline] = vocabulary
        vocabulary.words[self] = self.adapter.tokens
        vocabulary.update(self.pipeline)

    def undo(self):
        vocabulary = _VOCABULARIES.get(self.pipeline)
        if vocabulary and vocabulary.words.pop(self, None) is not None:
            vocabulary.update(self.pipeline)
            if not vocabulary.words:
                del _VOCABULARIES[self.pipeline]


class _Vocabulary:
    """The tokenizers and tables of the base, and the new words by the adapter that has them."""

    def __init__(self):
        # By text encoder: the tokenizer, the parameter of the table, and the token that ends a text.
        self.originals = {}
        self.words = {}

    def check(self, pipeline, name, token, vectors):
        encoders = [key for key in ("text_encoder", "text_encoder_2") if getattr(pipeline, key, None) is not None]
        if set(vectors) != set(encoders):
            raise AdapterError(f"{name} for {sorted(vectors)}, and the {type(pipeline).__name__} has {encoders}")
        for component, values in vectors.items():
            tokenizer = getattr(pipeline, _tokenizer_name(component), None)
            if tokenizer is None or not hasattr(pipeline, "maybe_convert_prompt"):
                raise AdapterError(f"{name}, which the {type(pipeline).__name__} cannot have")
            if token in tokenizer.get_vocab():
                raise AdapterError(f"{name}, which the tokenizer has already; unload the other adapter first")
            table = getattr(pipeline, component).get_input_embeddings().weight
            if values.shape[1] != table.shape[1] or not len(values):
                raise AdapterError(f"{name} with vectors {list(values.shape)}; the {component} has {table.shape[1]} numbers")
            if table.device.type == "meta":
                raise AdapterError(f"{name}: load the adapter before offloading the model")

    def update(self, pipeline):
        import torch
        from transformers import AddedToken

        for component in {component for words in self.words.values() for word in words.values() for component in word}:
            if component not in self.originals:
                encoder = getattr(pipeline, component)
                tokenizer = getattr(pipeline, _tokenizer_name(component))
                text = getattr(encoder, "text_model", encoder)
                end = (text, text.eos_token_id) if hasattr(text, "eos_token_id") else None
                self.originals[component] = (tokenizer, encoder.get_input_embeddings().weight, end)
        for component, (tokenizer, table, end) in self.originals.items():
            embeddings = getattr(pipeline, component).get_input_embeddings()
            # The table may have moved to another device in the meantime.
            table.data = table.data.to(embeddings.weight.device, embeddings.weight.dtype)
            longer, rows = (copy.deepcopy(tokenizer) if self.words else tokenizer), {}
            for words in self.words.values():
                for token, vectors in words.items():
                    values = vectors[component]
                    # The names of diffusers, by which prompts are converted.
                    names = [token] + [f"{token}_{index}" for index in range(1, len(values))]
                    longer.add_tokens([AddedToken(name, single_word=_is_bare(token)) for name in names])
                    rows.update(zip(longer.convert_tokens_to_ids(names), values))
            setattr(pipeline, _tokenizer_name(component), longer)
            if rows:
                missing = max(max(rows) + 1 - len(table), 0)
                values = torch.cat([table.data, table.data.new_zeros(missing, table.shape[1])])
                for row, vector in rows.items():
                    values[row] = torch.from_numpy(vector).to(values)
                embeddings.weight = torch.nn.Parameter(values, requires_grad=table.requires_grad)
            else:
                embeddings.weight = table
            embeddings.num_embeddings = len(embeddings.weight)
            if end is not None:
                # With the number 2, the text ends at its largest token, which would be the new word.
                text, number = end
                text.eos_token_id = tokenizer.eos_token_id if rows and number == 2 else number
        if not self.words:
            self.originals = {}


def _is_bare(token):
    """Whether a token might be part of another word, as `sks` is of `asks`; it is then found as a whole word only."""
    return any(end.isalnum() or end == "_" for end in (token[0], token[-1]))


def _tokenizer_name(component):
    return component.replace("text_encoder", "tokenizer")


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
