"""Reading and writing adapter files: what is damaged or unknown is refused by name."""

import importlib.util
import json
import os
import random
import re
import tempfile
import unittest
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

import soda_adapters
from soda_adapters import AdapterError
from soda_adapters.factors import factor_sizes
from soda_adapters.formulas import adapted, algebra, factors, formula, permutations
from soda_adapters.formulas.timestep_mask import active_directions
from soda_adapters.prompt_encoding import arguments, read_prompt_encoding
from soda_adapters.settings import METHODS
from soda_adapters.targets import PRESETS, select
from test_formulas import base_weight

FIXTURES = Path(__file__).resolve().parent / "fixtures"
PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parents[1]
SOURCES = Path(__file__).resolve().parents[2] / "soda-adapters/src/methods"


def contents(name):
    with safe_open(FIXTURES / f"{name}.safetensors", "np") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata())


class Files(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = os.path.join(self.folder.name, "a.safetensors")

    def refused(self, sentence, tensors, metadata):
        save_file(tensors, self.path, metadata)
        with self.assertRaisesRegex(AdapterError, sentence):
            soda_adapters.read(self.path)

    def with_method(self, name, change):
        tensors, metadata = contents(name)
        parts = json.loads(metadata["parts"])
        change(parts["unet"])
        return tensors, metadata | {"parts": json.dumps(parts)}

    def test_a_file_is_read_and_written_again(self):
        for name in ("kronecker-svd", "lora", "text"):
            adapter = soda_adapters.read(FIXTURES / f"{name}.safetensors")
            soda_adapters.write(adapter, self.path)
            again = soda_adapters.read(self.path)
            self.assertEqual(os.listdir(self.folder.name), ["a.safetensors"])
            for field in ("base", "trigger", "training", "schedule"):
                self.assertEqual(getattr(again, field), getattr(adapter, field))
            tensors, metadata = contents(name)
            with safe_open(self.path, "np") as file:
                self.assertEqual(set(file.keys()), set(tensors))
                for key, tensor in tensors.items():
                    np.testing.assert_array_equal(file.get_tensor(key), tensor)
                self.assertEqual(json.loads(file.metadata()["parts"]), json.loads(metadata["parts"]))

    def test_settings_alone_make_a_recipe(self):
        for name in ("subspace-ranks", "oft-coft", "lora"):
            adapter = soda_adapters.read(FIXTURES / f"{name}.safetensors")
            wanted = adapter.parts["unet"].settings
            adapter.parts["unet"].recipe = {}
            soda_adapters.write(adapter, self.path)
            self.assertEqual(soda_adapters.read(self.path).parts["unet"].settings, wanted)

    def test_version_1_has_the_unet_alone(self):
        tensors, metadata = contents("lora")
        part = json.loads(metadata.pop("parts"))["unet"]
        metadata |= {"version": "1", "method": "lora", "config": json.dumps(part["method"])}
        metadata |= {"targets": json.dumps(part["targets"]), "base_hash": part["base_hash"]}
        save_file(tensors, self.path, metadata)
        read = soda_adapters.read(self.path)
        self.assertEqual(read.parts["unet"].settings["rank"], 2)
        self.assertEqual(len(read.parts["unet"].weights), 3)

    def test_fields_of_the_header_are_refused_by_name(self):
        tensors, metadata = contents("lora")
        for field, value, sentence in (
            ("format", None, "no `format`"),
            ("format", "other", "format `other`"),
            ("version", "4", "version 4"),
            ("signs", "other", "sign rule"),
            ("parts", "{", "`parts`"),
            ("parts", "[]", "`parts`"),
            ("parts", "[" * 100_000, "`parts`"),
            ("parts", '{"vae": {}}', "`vae`"),
            ("parts", '{"unet": {}}', "`unet`"),
            ("trigger", '"word"', "`trigger`"),
        ):
            changed = {key: text for key, text in metadata.items() if key != field}
            if value is not None:
                changed[field] = value
            with self.subTest(field=field, value=value[:9] if value else value):
                self.refused(sentence, tensors, changed)

    def test_settings_are_refused_by_name(self):
        def method(**changes):
            return lambda part: part["method"].update(changes)

        for name, change, sentence in (
            ("lora", method(name="lorb"), "lorb"),
            ("lora", method(ranks=3), "unet.method.ranks is unknown"),
            ("lora", method(rank=0), "unet.method.rank is 0"),
            ("lora", method(rank=2.5), "unet.method.rank is 2.5"),
            ("lora", method(rank=True), "unet.method.rank is True"),
            ("lora", method(dora="yes"), "unet.method.dora"),
            ("lora", method(init="zero"), "unet.method.init"),
            ("lora", method(rank_pattern={"a": 10**9}), "unet.method.rank_pattern.a"),
            ("oft", method(cayley={"form": "series"}), "unet.method.cayley.form"),
            ("oft", method(cayley={"form": "neumann", "terms": 1000}), "unet.method.cayley.terms"),
            ("kronecker-svd", method(rotation=None, spectrum=None), "trains nothing"),
            ("kronecker-svd", method(timestep_mask={}), "timestep_mask belongs to a rotation of a subspace"),
            ("svdiff", method(timestep_mask={}), "timestep_mask belongs to"),
            ("dora", method(timestep_mask={}), "`dora` exclude each other"),
            ("lora", method(timestep_mask={"alpha": 0}), "timestep_mask.alpha is 0"),
            ("kronecker-svd", method(spectrum={"basis": "lu"}), "unet.method.spectrum.basis"),
            ("lora", lambda part: part.update(targets=[]), "targets"),
            ("lora", lambda part: part.update(base_hash=1), "base_hash"),
            ("lora", lambda part: part.update(more=1), "and no more"),
        ):
            with self.subTest(sentence):
                self.refused(sentence, *self.with_method(name, change))

    def test_tensors_are_refused_by_name(self):
        tensors, metadata = contents("lora")
        key = "unet.conv_in.weight.lora.a"
        broken = tensors[key].copy()
        broken[0, 0] = np.nan
        self.refused(f"{key} has an entry", tensors | {key: broken}, metadata)
        self.refused(f"{key} is I32", tensors | {key: tensors[key].astype(np.int32)}, metadata)
        self.refused("vae.x belongs to no part", tensors | {"vae.x": tensors[key]}, metadata)
        self.refused("unet.x belongs to no part", tensors | {"unet.x": tensors[key]}, metadata)

    def test_tensors_of_a_weight_are_checked(self):
        part = soda_adapters.read(FIXTURES / "kronecker-svd.safetensors").parts["unet"]
        path, shape = "conv_in.weight", (64, 4, 3, 3)

        def make(change):
            tensors = dict(part.weights[path])
            change(tensors)
            return lambda: formula(part.method, part.settings, path, tensors, shape)

        make(lambda tensors: None)()
        for change, sentence in (
            (lambda t: t.pop("spectrum.delta"), "spectrum.delta is missing"),
            (lambda t: t.pop("rotation.factors.2"), "on a side of 36"),
            (lambda t: t.update({"rotation.more": t["spectrum.delta"]}), "rotation.more is unknown"),
            (lambda t: t.update({"spectrum.delta": np.zeros(3, np.float32)}), r"shape \[3\], not \[36\]"),
            (lambda t: t.update({"rotation.factors.0": t["rotation.factors.0"] * 2}), "not orthogonal"),
        ):
            with self.assertRaisesRegex(AdapterError, sentence):
                make(change)()

    def test_a_mask_over_timesteps_has_no_weight(self):
        tensors, metadata = self.with_method("lora", lambda part: part["method"].update(timestep_mask={"alpha": 2.0}))
        save_file(tensors, self.path, metadata)
        part = soda_adapters.read(self.path).parts["unet"]
        self.assertEqual(part.settings["timestep_mask"], {"min_rank": 1, "alpha": 2.0})
        path = "conv_in.weight"
        for masks, sentence in ((False, "soda_adapters.load"), (True, "convolution")):
            with self.assertRaisesRegex(AdapterError, sentence):
                formula(part.method, part.settings, path, part.weights[path], (64, 4, 3, 3), masks=masks)

    def test_other_files_are_refused(self):
        for text, sentence in ((b"", "safetensors"), (b"\xff" * 8, "larger"), (b"\x10" + b"\0" * 30, "safetensors")):
            Path(self.path).write_bytes(text)
            with self.assertRaisesRegex(AdapterError, sentence):
                soda_adapters.read(self.path)
        with self.assertRaisesRegex(AdapterError, "regular"):
            soda_adapters.read(self.folder.name)
        with self.assertRaisesRegex(AdapterError, "cannot read"):
            soda_adapters.read(self.path + ".missing")


class Damaged(unittest.TestCase):
    """A damaged file is an `AdapterError`, and nothing else."""

    def test_mutated_files(self):
        generator = random.Random(0)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.safetensors"
            for name in ("hra", "lora", "kronecker-qr-low-rank", "oft-coft"):
                whole = (FIXTURES / f"{name}.safetensors").read_bytes()
                header = 8 + int.from_bytes(whole[:8], "little")
                for _ in range(150):
                    data = bytearray(whole)
                    for _ in range(generator.randint(1, 4)):
                        # Most changes go to the header, where most of the rules are.
                        at = generator.randrange(header if generator.random() < 0.8 else len(data))
                        data[at] = generator.choice((data[at] ^ 1 << generator.randrange(8), 0x22, 0x30, 0x39, 0x7D))
                    path.write_bytes(data[: generator.randrange(len(data))] if generator.random() < 0.1 else data)
                    self.use(path)

    def use(self, path):
        try:
            for part in soda_adapters.read(path).parts.values():
                for weight, tensors in part.weights.items():
                    shape = {"conv_in.weight": (64, 4, 3, 3), "conv_out.weight": (4, 64, 3, 3)}.get(weight, (64, 64))
                    made = formula(part.method, part.settings, weight, tensors, shape)
                    with np.errstate(all="ignore"):
                        adapted(made, np.ones(shape, np.float32), 0.3)
        except AdapterError:
            pass


class Encoding(unittest.TestCase):
    """The encoding of prompts is read, written, and compared with the defaults of a pipeline."""

    def test_it_travels(self):
        adapter = soda_adapters.read(FIXTURES / "flux.safetensors")
        self.assertEqual(adapter.prompt_encoding, {})
        adapter.prompt_encoding = {"text_encoder_out_layers": (10, 20, 30), "max_sequence_length": 77}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "adapter.safetensors"
            soda_adapters.files.write(adapter, path)
            self.assertEqual(soda_adapters.read(path).prompt_encoding, adapter.prompt_encoding)

    def test_other_values_are_refused(self):
        for value in ([], {"colour": 1}, {"max_sequence_length": 0}, {"text_encoder_out_layers": []}, {"text_encoder_out_layers": [-1]}):
            with self.assertRaises(AdapterError):
                read_prompt_encoding(value, "file")

    def test_a_pipeline_needs_what_is_not_its_default(self):
        class Pipeline:
            def __call__(self, prompt, max_sequence_length=512, text_encoder_out_layers=(9, 18, 27)):
                pass

        own = {"text_encoder_out_layers": (9, 18, 27), "max_sequence_length": 512}
        self.assertEqual(arguments(Pipeline(), own), {})
        self.assertEqual(arguments(Pipeline(), {**own, "max_sequence_length": 64}), {"max_sequence_length": 64})
        self.assertEqual(arguments(object.__new__(Pipeline), {}), {})


class Sources(unittest.TestCase):
    """The tables of this package are those of the binary's sources."""

    def fields(self, file, struct):
        text = (SOURCES / file).read_text()
        body = re.search(rf"pub struct {struct} \{{(.*?)\n\}}", text, re.S)[1]
        return set(re.findall(r"^    pub (\w+):", body, re.M))

    def test_methods_are_those_of_the_table(self):
        table = (SOURCES / "table.rs").read_text()
        self.assertEqual(set(re.findall(r'^    "([\w-]+)" => \w+\(', table, re.M)), set(METHODS))

    def test_settings_are_those_of_the_configurations(self):
        soda = METHODS["soda"].fields
        for file, struct, fields in (
            ("soda/config.rs", "SodaConfig", soda),
            ("soda/config.rs", "RotationConfig", soda["rotation"].fields),
            ("soda/config.rs", "SpectrumConfig", soda["spectrum"].fields),
            ("soda/config.rs", "CalibrationConfig", soda["calibration"].fields),
            ("lora.rs", "LoraConfig", METHODS["lora"].fields),
            ("loha.rs", "LohaConfig", METHODS["loha"].fields),
            ("lokr.rs", "LokrConfig", METHODS["lokr"].fields),
            ("oft.rs", "OftConfig", METHODS["oft"].fields),
            ("boft.rs", "BoftConfig", METHODS["boft"].fields),
            ("timestep_mask.rs", "TimestepMask", soda["timestep_mask"].fields),
        ):
            self.assertEqual(self.fields(file, struct), set(fields), struct)

    def test_targets_are_those_of_the_presets(self):
        text = (SOURCES.parents[2] / "soda-pipeline/src/target_presets.rs").read_text()
        names = set(re.findall(r'by_name\(\s*"([\w+-]+)"', text))
        self.assertEqual(names | {"all-linear", "conv"}, set(PRESETS))
        for entry in text.split("by_name(")[1:]:
            name = re.match(r'\s*"([\w+-]+)"', entry)
            if name:
                source = "".join(re.findall(r'r"([^"]*)"', entry))
                self.assertEqual(self.words(source), self.words(PRESETS[name[1]][0]), name[1])

    def words(self, pattern):
        """What is between the bars of a pattern, in any order."""
        return set(re.findall(r"[\w\\.\[\]]+", pattern.replace(r"\.weight$", "")))


class Packaging(unittest.TestCase):
    """The wheel with the command, of the root, and the wheel of the package alone."""

    def test_both_wheels_have_one_name_and_the_same_needs(self):
        try:
            import tomllib
        except ModuleNotFoundError:
            self.skipTest("Python 3.10 reads no TOML")
        whole, alone = (tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in (ROOT, PACKAGE))
        for field in ("name", "requires-python", "dependencies", "optional-dependencies", "urls"):
            self.assertEqual(whole[field], alone[field], field)

    def test_the_version_is_that_of_the_binary(self):
        manifest = (ROOT / "Cargo.toml").read_text()
        self.assertEqual(re.search(r'^version = "(.+)"', manifest, re.M)[1], soda_adapters.__version__)

    def test_a_missing_toolchain_is_named(self):
        spec = importlib.util.spec_from_file_location("rust_toolchain", PACKAGE / "packaging/rust_toolchain.py")
        toolchain = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(toolchain)
        manifest = (ROOT / "Cargo.toml").read_text()
        for found, sentence in ((None, "`cargo` is not on the PATH"), ("cargo 1.80.1 (x)\n", "this is cargo 1.80.1")):
            reason = toolchain.missing(manifest, found)
            self.assertIn(sentence, reason)
            self.assertIn("pip install ./crates/soda-python", reason)
        for found in ("cargo 1.92.0 (x)\n", "cargo 2.1.0\n"):
            self.assertIsNone(toolchain.missing(manifest, found))


class Formulas(unittest.TestCase):
    def test_sizes_of_factors_are_those_of_the_binary(self):
        for n, count, sizes in ((1280, 3, [8, 10, 16]), (127, 3, [127]), (64, 3, [4, 4, 4]), (1, 3, [1]), (320, 2, [16, 20])):
            self.assertEqual(factor_sizes(n, count), sizes)

    def test_whole_timesteps_have_the_directions_of_the_binary(self):
        for rank, least in ((16, 1), (64, 32), (10, 0), (7, 7), (4, 9)):
            found = active_directions({"min_rank": least, "alpha": 1.0}, np.arange(1001), rank)
            wanted = [min(max(rank - least, 0) * (1000 - t) // 1000 + least, rank) for t in range(1001)]
            self.assertEqual(found.tolist(), wanted)
        found = active_directions({"min_rank": 2, "alpha": 2.0}, [0, 250, 500, 700, 1000], 12)
        self.assertEqual(found.tolist(), [12, 7, 4, 2, 2])

    def test_factors_are_the_change_of_the_weight(self):
        compared = 0
        for name in ("lora", "rslora", "pissa", "subspace", "subspace-both", "subspace-ranks", "psoft", "t-lora", "t-soda"):
            part = soda_adapters.read(FIXTURES / f"{name}.safetensors").parts["unet"]
            for path, tensors in part.weights.items():
                weight = base_weight("unet", path)
                made = formula(part.method, part.settings, path, tensors, weight.shape, masks=True)
                for strength in (0.3, 1.0):
                    a, b, ranks = factors(made, weight, strength)
                    change = adapted(made, weight, strength) - weight
                    self.assertEqual((a.shape[1], b.shape[0]), (sum(ranks), sum(ranks)))
                    error = np.abs((a @ b).T.reshape(weight.shape) - change).max() / np.abs(weight).max()
                    self.assertTrue(error <= 1e-6, f"{name} {path}: {error:.1e}")
                    compared += np.abs(change).max() > 1e-3
        self.assertTrue(compared > 30, compared)

    def test_random_orders_are_those_of_the_binary(self):
        self.assertEqual(permutations.random(8, 0).tolist(), [1, 3, 5, 6, 0, 7, 4, 2])
        self.assertEqual(permutations.shuffle(6, 2).tolist(), [0, 3, 1, 4, 2, 5])
        order = permutations.butterfly(16, 4, 1).tolist()
        self.assertEqual(order, [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15])
        long = permutations.random(1000, 3)
        self.assertEqual(sorted(long), list(range(1000)))

    def test_powers_are_on_the_geodesic(self):
        generator = np.random.default_rng(0)
        rotation = algebra.exponential(algebra.skew(generator.normal(size=(3, 9, 9))) * 0.7)
        third = algebra.rotation_power(rotation, 1 / 3)
        self.assertTrue(np.abs(third @ third @ third - rotation).max() < 1e-12)
        opposite = algebra.rotation_power(rotation, -1.0)
        self.assertTrue(np.abs(opposite - rotation.swapaxes(1, 2)).max() < 1e-12)
        half_turn = np.diag([-1.0, -1.0, 1.0])
        with self.assertRaisesRegex(AdapterError, "half a turn"):
            algebra.rotation_power(half_turn, 0.5)
        np.testing.assert_array_equal(algebra.rotation_power(half_turn, 1.0), half_turn)

    def test_targets_are_presets_or_patterns(self):
        shapes = {"a.to_q.weight": (4, 4), "conv_in.weight": (4, 4, 3, 3), "position_embedding.weight": (9, 4)}
        self.assertEqual(select(["attention"], shapes), ["a.to_q.weight"])
        self.assertEqual(select(["conv"], shapes), ["conv_in.weight"])
        self.assertEqual(select(["^conv_in", r"to_q\.weight$"], shapes), ["a.to_q.weight", "conv_in.weight"])
        with self.assertRaisesRegex(AdapterError, "regular expression"):
            select(["("], shapes)


if __name__ == "__main__":
    unittest.main()
