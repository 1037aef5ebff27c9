"""A ComfyUI node that loads adapters of SODA: every method, at any strength on the geodesic.

Copy this file to `ComfyUI/custom_nodes`, and install the package into ComfyUI's Python:

    python -m pip install PATH/TO/soda/crates/soda-python

Adapters belong into `ComfyUI/models/loras`. The node is "Load SODA adapter" in `loaders`.

The change of a weight is that of its base: the node puts itself before other patches of the weight, whose changes
are added. Several adapters of SODA on one weight add their changes. Decompositions are kept in main memory, so that
another strength is quick.

New words of an adapter (textual inversion) are those of its file: write `<mug>` in the prompt of a node that has the
node's CLIP. A weight is given as for other words: `(<mug>:1.2)`.
"""

import collections
import copy
import logging
import os
import re
import weakref

import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from comfy.weight_adapter import WeightAdapterBase

try:
    import soda_adapters
    from soda_adapters import formulas, masks, settings, targets
except ImportError:
    raise ImportError(
        "the node of SODA needs the package soda-adapters: run `python -m pip install PATH/TO/soda/crates/soda-python` "
        "with the Python of ComfyUI"
    ) from None

# The files that were read last, with their decompositions: three large ones fill the memory of a desktop.
MAX_FILES = 3
_FILES = collections.OrderedDict()

# The keys of a text encoder in ComfyUI, by component; SD 2 has `clip_h`.
_TEXT_ENCODERS = {"text_encoder": ("clip_l", "clip_h"), "text_encoder_2": ("clip_g",)}

# The weights of FLUX.2 by diffusers' names. `[i]` is the i-th third of a fused projection.
_FLUX2_DOUBLE = {
    "attn.to_q": "img_attn.qkv[0]",
    "attn.to_k": "img_attn.qkv[1]",
    "attn.to_v": "img_attn.qkv[2]",
    "attn.add_q_proj": "txt_attn.qkv[0]",
    "attn.add_k_proj": "txt_attn.qkv[1]",
    "attn.add_v_proj": "txt_attn.qkv[2]",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
_FLUX2_SINGLE = {"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}
_FLUX2_OTHERS = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "proj_out": "final_layer.linear",
    # Its halves, scale and shift, are in the other order.
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}

# The weights of Z-Image by diffusers' names that ComfyUI calls otherwise.
_Z_IMAGE = {
    ".attention.to_q": ".attention.qkv[0]",
    ".attention.to_k": ".attention.qkv[1]",
    ".attention.to_v": ".attention.qkv[2]",
    ".attention.to_out.0": ".attention.out",
    "all_x_embedder.2-1": "x_embedder",
    "all_final_layer.2-1": "final_layer",
}
_Z_IMAGE_MODULES = ("layers.", "noise_refiner.", "context_refiner.", "cap_embedder.", "t_embedder.", "all_")


def flux2_name(path):
    """The name in ComfyUI of a weight of diffusers' FLUX.2, and the third that it is of a fused one, or `None`."""
    stem = path.removesuffix(".weight")
    kind, _, rest = stem.partition(".")
    index, _, inside = rest.partition(".")
    if kind == "transformer_blocks" and inside in _FLUX2_DOUBLE:
        name, third = _FLUX2_DOUBLE[inside], None
        if name.endswith("]"):
            name, third = name[:-3], int(name[-2])
        return f"double_blocks.{index}.{name}.weight", third
    if kind == "single_transformer_blocks" and inside in _FLUX2_SINGLE:
        return f"single_blocks.{index}.{_FLUX2_SINGLE[inside]}.weight", None
    if stem in _FLUX2_OTHERS:
        return f"{_FLUX2_OTHERS[stem]}.weight", None
    return None


def z_image_name(path):
    """The name in ComfyUI of a weight of diffusers' Z-Image, and the third that it is of a fused one, or `None`."""
    if not path.startswith(_Z_IMAGE_MODULES):
        return None
    stem, third = path.removesuffix(".weight"), None
    for theirs, ours in _Z_IMAGE.items():
        stem = stem.replace(theirs, ours)
    if stem.endswith("]"):
        stem, third = stem[:-3], int(stem[-2])
    return f"{stem}.weight", third


class Place:
    """Where a weight of diffusers is in ComfyUI: its key, the rows of a fused weight, and whether halves are swapped."""

    def __init__(self, key, rows=None, swapped=False):
        self.key, self.rows, self.swapped = key, rows, swapped

    def patch_key(self):
        """The key of `ModelPatcher.add_patches`."""
        if self.swapped:
            return (self.key, None, comfy.utils.swap_scale_shift)
        return self.key if self.rows is None else (self.key, (0, *self.rows))

    def add(self, output, change):
        """Adds a change of diffusers' outputs to those of the layer here."""
        if self.swapped:
            change = torch.cat(change.chunk(2, -1)[::-1], -1)
        if self.rows is None:
            return output + change
        first, length = self.rows
        return output + torch.nn.functional.pad(change, (first, output.shape[-1] - first - length))

    def of(self, weight):
        """The weight as diffusers has it."""
        if self.swapped:
            return comfy.utils.swap_scale_shift(weight)
        return weight if self.rows is None else weight.narrow(0, *self.rows)


def unet_places(model):
    """The places of the UNet's weights, by the names of diffusers."""
    names = comfy.utils.unet_to_diffusers(model.model_config.unet_config)
    return {path: Place(f"diffusion_model.{name}") for path, name in names.items() if path.endswith(".weight")}


def transformer_places(model, paths):
    """The places of weights of the transformer of FLUX.2 or Z-Image, by the names of diffusers."""
    weights = model.state_dict()
    places = {}
    for path in paths:
        name = flux2_name(path) or z_image_name(path)
        key = f"diffusion_model.{name[0]}" if name else None
        if key in weights:
            third = weights[key].shape[0] // 3
            rows = None if name[1] is None else (name[1] * third, third)
            places[path] = Place(key, rows, swapped=path == "norm_out.linear.weight")
    return places


def text_places(model, component, paths):
    """The places of a text encoder's weights, by the names of transformers."""
    weights = model.state_dict()
    for name in _TEXT_ENCODERS[component]:
        places = {path: Place(f"{name}.transformer.{path}") for path in paths}
        if all(place.key in weights for place in places.values()):
            return places
    return {}


class Words:
    """The tokenizer of one text encoder that knows new words, over ComfyUI's class of it.

    ComfyUI finds embeddings by `embedding:NAME`. A new word in a prompt becomes such a name, whose vectors are here.
    """

    # By word: the vectors `[k, width]`.
    soda_words = {}

    def tokenize_with_weights(self, text, *args, **kwargs):
        return super().tokenize_with_weights(self._marked(text), *args, **kwargs)

    def _marked(self, text):
        """The text with the names of new words. Words are found in any case, as the `soda` binary finds them."""
        names = {word.lower(): index for index, word in enumerate(self.soda_words)}
        # Of two words that begin alike, the longer one.
        pattern = "|".join(_expression(word) for word in sorted(names, key=len, reverse=True))

        def name(found):
            return f" {self.embedding_identifier}{_name(names[found[0].lower()])} "

        return re.sub(pattern, name, text, flags=re.IGNORECASE)

    def _try_get_embedding(self, embedding_name):
        name, _, rest = embedding_name.strip().partition(" ")
        for index, vectors in enumerate(self.soda_words.values()):
            if name == _name(index):
                return vectors, rest.strip()
        return super()._try_get_embedding(embedding_name)


def _name(index):
    """The name of a new word, which is no number and no file of a user."""
    return f"soda.word.{index}."


def _expression(word):
    """Finds a word. One that begins or ends with a letter or digit is found as a whole word only."""
    bare = re.match(r"\w", word) or re.search(r"\w$", word)
    return rf"(?<!\w){re.escape(word)}(?!\w)" if bare else re.escape(word)


def with_words(tokenizer, adapter):
    """A copy of ComfyUI's tokenizer that knows the new words of an adapter."""
    places = {}
    for component, names in _TEXT_ENCODERS.items():
        for name in names:
            if hasattr(tokenizer, name):
                places[component] = name
    tokenizer = copy.copy(tokenizer)
    for word, vectors in adapter.tokens.items():
        if set(vectors) != set(places):
            raise ValueError(f"{adapter.path} has the new word {word} for {sorted(vectors)}, and the CLIP has {sorted(places)}")
        for component, values in vectors.items():
            inner = getattr(tokenizer, places[component])
            if values.shape[1] != inner.embedding_size or not len(values):
                raise ValueError(
                    f"{adapter.path} has the new word {word} with vectors {list(values.shape)}, and the {component} has "
                    f"{inner.embedding_size} numbers"
                )
            if inner.tokenizer.get_vocab().get(f"{word}</w>") is not None:
                raise ValueError(f"{adapter.path} has the new word {word}, which the tokenizer has already")
            setattr(tokenizer, places[component], _with_word(inner, adapter.path, word, torch.from_numpy(values)))
    return tokenizer


def _with_word(inner, path, word, vectors):
    known = getattr(inner, "soda_words", {})
    for other, found in known.items():
        if other.lower() == word.lower() and not torch.equal(found, vectors):
            raise ValueError(f"{path} has the new word {word}, which another adapter has with other vectors")
    inner = copy.copy(inner)
    if not isinstance(inner, Words):
        inner.__class__ = type("SodaTokenizer", (Words, type(inner)), {})
    # Without a folder ComfyUI looks for no embeddings.
    inner.embedding_directory = inner.embedding_directory or []
    inner.soda_words = {**known, word: vectors}
    return inner


class Part:
    """The formula of one adapted weight, with its decomposition."""

    def __init__(self, made, path):
        self.made, self.path = made, path
        self.known = self.basis = None

    def weight(self, base, strength):
        """The adapted weight of `base` in f32."""
        return base if strength == 0.0 else formulas.adapted(self.made, base, strength, self._basis(base))

    def factors(self, base, strength):
        """The change as factors with their ranks, for a mask over timesteps."""
        return formulas.factors(self.made, base, strength, self._basis(base))

    def _basis(self, base):
        # Another checkpoint has other decompositions.
        known = (float(base.sum(dtype=torch.float64)), float(base.norm()))
        if known != self.known:
            basis = formulas.basis_of(self.made, base)
            self.basis = None if basis is None else tuple(part.cpu() for part in basis)
            self.known = known
        return None if self.basis is None else tuple(part.to(base.device) for part in self.basis)


class SodaPatch(WeightAdapterBase):
    """The adapters of SODA on one weight: `weights` has pairs of a `Part` and its strength.

    ComfyUI makes copies of an adapter by these two arguments when it streams weights.
    """

    name = "soda"

    def __init__(self, loaded_keys, weights):
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(
        self,
        weight,
        key,
        strength,
        strength_model,
        offset,
        function,
        intermediate_dtype=torch.float32,
        original_weight=None,
        *_,
    ):
        """Changes the weight in place: ComfyUI passes a copy, or rows of it."""
        if strength_model == 0.0:
            raise ValueError(f"{key}: an adapter of SODA needs its base weight, and the strength of the model is 0")
        base = weight.float() / strength_model if strength_model != 1.0 else weight.float()
        # A transposition of halves, which is its own inverse.
        base = function(base)
        change = 0
        for part, own in self.weights:
            change = change + (part.weight(base, own * strength) - base)
        weight.copy_(weight.float() + function(change) if torch.is_tensor(change) else weight)
        return weight


class MaskedForward:
    """The forward function of a linear layer with masked changes, and the places of their outputs."""

    def __init__(self, layer, changes):
        self.layer, self.changes = layer, changes

    def __call__(self, x, *args, **kwargs):
        output = type(self.layer).forward(self.layer, x, *args, **kwargs)
        for place, change in self.changes:
            output = place.add(output, change(x).to(output.dtype))
        return output


def timesteps_of(model, mask, discrete):
    """The timesteps of a mask, and a wrapper of `apply_model` that keeps those of a call."""
    timesteps = masks.Timesteps(mask)

    def wrapper(executor, x, sigma, *args, **kwargs):
        # Models of flows have the timestep 1000 σ.
        values = model.model_sampling.timestep(sigma) if discrete else sigma * 1000.0
        timesteps.set(values.detach().reshape(-1).float().cpu().numpy())
        return executor(x, sigma, *args, **kwargs)

    return timesteps, wrapper


def add_masked(patcher, place, change, where):
    """Replaces the forward function of a layer by one that adds the change, too."""
    name = place.key.removesuffix(".weight")
    layer, function = comfy.utils.get_attr(patcher.model, name), f"{name}.forward"
    if not isinstance(layer, torch.nn.Linear):
        raise ValueError(f"{where} has a timestep_mask, which needs a linear layer, and {name} is none")
    other = patcher.object_patches.get(function)
    if other is not None and not isinstance(other, MaskedForward):
        raise ValueError(f"{where}: another node has replaced the forward function of {name}; remove that node")
    changes = other.changes if other is not None else []
    patcher.add_object_patch(function, MaskedForward(layer, [*changes, (place, change)]))


def read_file(path):
    """The adapter file and its parts, from the memory if it has not changed."""
    status = os.stat(path)
    stamp = (path, status.st_mtime_ns, status.st_size)
    if stamp not in _FILES:
        _FILES[stamp] = (soda_adapters.read(path), {})
        while len(_FILES) > MAX_FILES:
            _FILES.popitem(last=False)
    _FILES.move_to_end(stamp)
    return _FILES[stamp]


def patch(patcher, component, adapter, parts, strength):
    """Adds the patches of one network to a `ModelPatcher`."""
    part = adapter.parts[component]
    model = patcher.model
    if component == "unet":
        places = unet_places(model)
    elif component == "transformer":
        places = transformer_places(model, part.weights)
    else:
        places = text_places(model, component, part.weights)
    where = f"{adapter.path} ({component})"
    missing = [path for path in part.weights if path not in places or places[path].key not in model.state_dict()]
    if missing:
        raise ValueError(f"{where} adapts {missing[0]}, which the {type(model).__name__} of ComfyUI lacks")
    originals = patcher.get_key_patches()
    weights = {path: places[path].of(originals[places[path].key][0][0].detach()) for path in part.weights}
    checked = parts.setdefault(component, weakref.WeakSet())
    if model not in checked:
        check_base(where, adapter, part, weights)
        checked.add(model)
    # Text encoders have no timestep and use all directions, as a weight does.
    mask = None if component in _TEXT_ENCODERS else part.settings.get("timestep_mask")
    if mask and strength != 0.0:
        timesteps, wrapper = timesteps_of(model, mask, component == "unet")
        patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "soda", wrapper)
    for path, weight in weights.items():
        place = places[path]
        own = parts.get((component, path))
        if own is None or tuple(own.shape) != tuple(weight.shape):
            shape = tuple(weight.shape)
            made = formulas.formula(part.method, part.settings, path, part.weights[path], shape, masks=True)
            own = parts[component, path] = Part(made, path)
            own.shape = shape
        if not mask:
            add_first(patcher, place, own, strength)
        elif strength != 0.0:
            change = masks.MaskedChange(timesteps, path, own.factors(weight.float(), strength))
            add_masked(patcher, place, change, where)


def add_first(patcher, place, part, strength):
    """Adds a patch before those of other tools, and joins it with those of SODA on the same rows."""
    patcher.add_patches({place.patch_key(): SodaPatch(set(), [(part, strength)])}, 1.0)
    *others, new = patcher.patches[place.key]
    for index, other in enumerate(others):
        if isinstance(other[1], SodaPatch) and other[3] == new[3]:
            joined = SodaPatch(set(), [*other[1].weights, (part, strength)])
            others[index] = (1.0, joined, *other[2:])
            break
    else:
        others.insert(0, new)
    patcher.patches[place.key] = others


def check_base(where, adapter, part, weights):
    """Refuses another base model. Rounded weights cannot be told from another base, and give a warning."""
    rotation = part.settings.get("rotation")
    if rotation and (rotation["ranks"] or rotation["numbers"]):
        # The hash covers weights that have no rotation, too.
        return
    pairs = ((path, weights[path].float().cpu().numpy()) for path in sorted(weights))
    if targets.base_hash(pairs, part.base_hash) == part.base_hash:
        return
    rounded = any(weight.dtype != torch.float32 for weight in weights.values())
    if rounded or not settings.needs_its_base(part.method, part.settings):
        logging.warning(f"{where}: the weights may not be those of the base `{adapter.base}` that it was trained on")
    else:
        raise ValueError(f"{where} was trained on another base (`{adapter.base}`), and its method needs that one")


def load(model, clip, path, strength_model, strength_clip):
    """Returns clones of a `ModelPatcher` and a `CLIP` with the adapter; either may be `None`."""
    adapter, parts = read_file(path)
    if adapter.schedule:
        logging.warning(f"{path} was trained with the schedule {adapter.schedule}; set it by ModelSamplingDiscrete")
    model = model.clone() if model is not None else None
    clip = clip.clone() if clip is not None else None
    if adapter.tokens and clip is not None:
        clip.tokenizer = with_words(clip.tokenizer, adapter)
    elif adapter.tokens:
        logging.warning(f"{path}: the new words {', '.join(adapter.tokens)} are left out, since no CLIP is connected")
    for component in adapter.parts:
        of_text = component in _TEXT_ENCODERS
        target = clip.patcher if of_text and clip is not None else None if of_text else model
        if target is None:
            logging.warning(f"{path}: the part `{component}` is left out, since its input is not connected")
            continue
        patch(target, component, adapter, parts, strength_clip if of_text else strength_model)
    return model, clip


class SodaLoader:
    """The node."""

    CATEGORY = "loaders"
    RETURN_TYPES = ("MODEL", "CLIP")
    FUNCTION = "load"
    DESCRIPTION = "Loads an adapter of SODA. Strength 0 is the base, 1 the adapter; rotations move on the geodesic."

    @classmethod
    def INPUT_TYPES(cls):
        import folder_paths

        strength = ("FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01})
        return {
            "required": {
                "model": ("MODEL",),
                "adapter": (folder_paths.get_filename_list("loras"),),
                "strength_model": strength,
                "strength_clip": strength,
            },
            "optional": {"clip": ("CLIP",)},
        }

    @classmethod
    def IS_CHANGED(cls, adapter, **_):
        import folder_paths

        return os.stat(folder_paths.get_full_path_or_raise("loras", adapter)).st_mtime_ns

    def load(self, model, adapter, strength_model, strength_clip, clip=None):
        import folder_paths

        path = folder_paths.get_full_path_or_raise("loras", adapter)
        return load(model, clip, path, strength_model, strength_clip)


NODE_CLASS_MAPPINGS = {"SodaLoader": SodaLoader}
NODE_DISPLAY_NAME_MAPPINGS = {"SodaLoader": "Load SODA adapter"}
