//! Files for Z-Image.

use burn::tensor::Device;
use soda_models::pipeline::{Networks, Pipeline};
use soda_models::z_image::ZImageConfig;
use soda_models::{config, weights};
use soda_pipeline::Component;
use soda_pipeline::interop::{FileKind, Names, describe, import};

use super::common::{Fixture, write_z_image};
use super::files::{Exported, Fixtures, keys, lora, read, refusal, write};

const FIXTURES: Fixtures = Fixtures("z_image");

/// The transformer of the fixtures, with tokens of 56 channels and an MLP of 149.
fn uneven() -> Networks {
    let (device, dir) = (Device::default(), tempfile::tempdir().unwrap());
    let (config, file) = Fixture::read("z-image-uneven").write_model(dir.path());
    let config: ZImageConfig = config::read(&config).unwrap();
    Networks::from(weights::load(config.init(&device), &file).unwrap())
}

#[test]
fn files_make_the_weights_that_their_tools_make() {
    let cases = [
        ("diffusers", "lora"),
        ("ai-toolkit", "lora"),
        ("musubi", "lora"),
        ("onetrainer", "lora"),
        ("comfyui", "lora"),
        ("kohya", "lora"),
        ("ai-toolkit-lokr", "lokr"),
        // Magnitudes of inputs are of the whole layer, those of outputs have rows.
        ("lycoris-locon-dora-in", "full"),
        ("lycoris-locon-dora-out", "lora"),
        ("lycoris-loha", "loha"),
        // 7 x 24 outputs of queries, keys and values are no thirds, 6 x 28 are.
        ("lycoris-lokr", "lokr"),
        ("lycoris-lokr-thirds", "lokr"),
        ("lycoris-oft", "oft"),
        ("lycoris-full", "full"),
    ];
    FIXTURES.check_all(&uneven(), |name| format!("{name}.safetensors"), &cases);
}

#[test]
fn directories_of_peft_on_either_names_make_the_same_weights() {
    let cases = [
        ("lora", "lora"),
        ("dora-original", "lora"),
        // The triples are those of the whole layer.
        ("pissa-original", "full"),
        ("loha-original", "loha"),
        ("lokr-original", "lokr"),
        ("oft-original", "oft"),
        ("boft-original", "boft"),
        ("hra-original", "soda"),
    ];
    FIXTURES.check_all(&uneven(), |name| format!("peft/{name}"), &cases);
}

/// A file is told to be read by those tools alone that were seen to apply all of it.
#[test]
fn files_are_described_without_a_base() {
    for (name, names, tools) in [
        ("diffusers", Names::Diffusers, &["diffusers", "ComfyUI"][..]),
        // With an `α`, which diffusers does not read here.
        ("onetrainer", Names::Diffusers, &["ComfyUI"]),
        ("ai-toolkit", Names::ComfyUi, &["ComfyUI", "diffusers"]),
        ("ai-toolkit-lokr", Names::ComfyUi, &["ComfyUI", "diffusers"]),
        // musubi-tuner has no layers outside of the blocks.
        ("musubi", Names::Kohya, &["diffusers"]),
        ("comfyui", Names::ComfyUi, &["ComfyUI"]),
        ("kohya", Names::Kohya, &["ComfyUI", "diffusers"]),
    ] {
        let found = describe(&FIXTURES.path(&format!("{name}.safetensors"))).unwrap();
        assert_eq!(found.family, Some("Z-Image"), "{name}");
        assert_eq!(found.readers(), tools, "{name}");
        let FileKind::Adapter { names: found, layers, .. } = found.kind else {
            panic!("{name} is an adapter");
        };
        assert_eq!(found, names, "{name}");
        assert_eq!(layers.keys().collect::<Vec<_>>(), [&Some(Component::Transformer)], "{name}");
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let networks = uneven();
    let qkv = "diffusion_model.layers.0.attention.qkv";
    let to_q = "transformer.layers.0.attention.to_q";
    for outputs in [169, 56] {
        let message = refusal(&lora(qkv, [outputs, 56], 2), &networks);
        let found = format!("qkv.lora_B.weight has shape [{outputs}, 2]");
        assert!(message.contains(&found) && message.contains("needs [168, 2]"), "{message}");
    }
    let both = [lora(qkv, [168, 56], 2), lora(to_q, [56, 56], 2)].concat();
    let message = refusal(&both, &networks);
    assert!(message.contains("to_q.lora_A.weight and") && message.contains(qkv), "{message}");
    let [down, _] = lora(qkv, [168, 56], 2);
    let message = refusal(&[down], &networks);
    assert!(message.contains("not its B (up)"), "{message}");
}

/// Tensors of norms, of pad tokens and of the text encoder, which no method holds, are named.
#[test]
fn what_is_left_out_is_listed() {
    let networks = uneven();
    let norm = "diffusion_model.layers.0.attention.q_norm.diff".to_owned();
    let bias = "diffusion_model.x_embedder.diff_b".to_owned();
    let text = "text_encoder.model.layers.0.self_attn.q_proj".to_owned();
    let mut tensors = lora("diffusion_model.x_embedder", [56, 12], 2).to_vec();
    tensors.extend(lora(&text, [56, 56], 2));
    tensors.extend([(norm.clone(), vec![14]), (bias.clone(), vec![56])]);
    let imported = read(&tensors, &networks).unwrap();
    assert_eq!(imported.unmatched, [norm]);
    assert_eq!(imported.unread, [bias]);
    assert_eq!(imported.absent[&Component::TextEncoder].len(), 2);
    assert_eq!(imported.matched, ["transformer.all_x_embedder.2-1.weight"]);
}

#[test]
fn a_file_for_another_architecture_is_named() {
    let networks = uneven();
    let to_q = "transformer.layers.0.attention.to_q";
    for (module, sizes, expected) in [
        ("lora_unet_input_blocks_4_1_proj_in", [64, 64], "is for Stable Diffusion, and"),
        ("diffusion_model.double_blocks.0.img_attn.qkv", [168, 56], "is for FLUX, and"),
        ("diffusion_model.layers.1.attention.qkv", [168, 56], "is for a larger model, and"),
        ("transformer.noise_refiner.2.attention.to_k", [56, 56], "is for a larger model, and"),
        ("lora_unet_layers_29_feed_forward_w1", [149, 56], "is for a larger model, and"),
    ] {
        let mut tensors = lora(module, sizes, 2).to_vec();
        if expected.contains("model") {
            // This layer fits.
            tensors.extend(lora(to_q, [56, 56], 2));
        }
        let message = refusal(&tensors, &networks);
        let base = "the base is Z-Image";
        assert!(message.contains(expected) && message.contains(base), "{message}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    for (value, fits) in [("z_image", true), ("zimage", true), ("flux_2_klein_4b", false)] {
        write(&path, &lora(to_q, [56, 56], 2), &[("ss_base_model_version", value)]);
        assert_eq!(import(&path, &networks, "base").is_ok(), fits, "{value}");
    }
    let lumina = [("modelspec.architecture", "lumina-2/lora")];
    write(&path, &lora("diffusion_model.layers.0.attention.qkv", [168, 56], 2), &lumina);
    let message = import(&path, &networks, "base").unwrap_err().to_string();
    assert!(message.contains("is for Lumina 2, and the base is Z-Image"), "{message}");
}

/// Shapes in the tiny pipeline: 24 channels, and 64 in the MLPs.
fn adapted() -> Vec<(String, Vec<usize>)> {
    let block = "transformer.layers.1";
    [
        // Two of three, with an `A` each.
        lora(&format!("{block}.attention.to_q"), [24, 24], 2),
        lora(&format!("{block}.attention.to_v"), [24, 24], 3),
        lora("transformer.context_refiner.0.attention.to_k", [24, 24], 2),
        lora("transformer.noise_refiner.0.attention.to_out.0", [24, 24], 4),
        lora(&format!("{block}.feed_forward.w1"), [64, 24], 2),
        lora(&format!("{block}.feed_forward.w2"), [24, 64], 2),
        lora(&format!("{block}.adaLN_modulation.0"), [96, 24], 2),
        lora("transformer.all_x_embedder.2-1", [24, 16], 2),
        lora("transformer.all_final_layer.2-1.linear", [16, 24], 2),
    ]
    .concat()
}

#[test]
fn exported_files_have_the_names_of_their_tools_and_are_read_back() {
    let dir = tempfile::tempdir().unwrap();
    write_z_image(&Fixture::read("pipeline-z-image"), dir.path());
    let pipeline = Pipeline::load(dir.path(), &Device::default()).unwrap();
    let exported = Exported::new(&pipeline, &adapted());
    assert_eq!(exported.changed, 9);
    let [kohya, diffusers, diff] = &exported.files;

    let names = keys(kohya);
    let qkv = "lora_unet_layers_1_attention_qkv";
    // The rank is the sum of those of the parts.
    assert_eq!(names[&format!("{qkv}.lora_down.weight")], [5, 24]);
    assert_eq!(names[&format!("{qkv}.lora_up.weight")], [72, 5]);
    for module in ["noise_refiner_0_attention_out", "x_embedder", "final_layer_linear"] {
        assert!(names.contains_key(&format!("lora_unet_{module}.alpha")), "{module}");
    }
    assert_eq!(names.len(), 3 * 8);
    assert!(names.keys().all(|name| !name.contains("attention_to_") && !name.contains("all_")));
    assert_eq!(keys(diffusers), adapted().into_iter().collect());
    let deltas = keys(diff);
    assert_eq!(deltas[&format!("{qkv}.diff")], [72, 24]);
    assert_eq!(deltas.len(), 8);
    exported.check_metadata(
        "https://github.com/Tongyi-MAI/Z-Image",
        &[
            ("ss_base_model_version", "z_image"),
            ("modelspec.architecture", "Z-Image/lora"),
            ("modelspec.prediction_type", "flow"),
        ],
    );
    // diffusers finds no `x_embedder` and no `final_layer`.
    assert_eq!(describe(kohya).unwrap().readers(), ["ComfyUI"]);
    assert_eq!(describe(diffusers).unwrap().readers(), ["diffusers", "ComfyUI"]);
    assert_eq!(describe(diff).unwrap().readers(), ["ComfyUI"]);
}
