//! Files for FLUX.2.

use std::collections::BTreeSet;

use burn::tensor::Device;
use soda_models::flux2::Flux2Config;
use soda_models::pipeline::{Networks, Pipeline};
use soda_models::{config, weights};
use soda_pipeline::interop::{CompressionBudget, compress_to_lora, import, write_kohya};

use super::common::Fixture;
use super::files::{
    Exported, Fixtures, full_precision, keys, lora, metadata, read, refusal, write,
};

const FIXTURES: Fixtures = Fixtures("flux2");

/// The transformer of the fixtures.
fn uneven() -> Networks {
    let (device, dir) = (Device::default(), tempfile::tempdir().unwrap());
    let (config, file) = Fixture::read("flux2-uneven").write_model(dir.path());
    let config: Flux2Config = config::read(&config).unwrap();
    Networks::from(weights::load(config.init(&device), &file).unwrap())
}

#[test]
fn files_make_the_weights_that_their_tools_make() {
    let cases = [
        ("diffusers", "lora"),
        ("bfl", "lora"),
        ("kohya", "lora"),
        // 7 x 18 outputs of queries, keys and values are no thirds, 6 x 21 are.
        ("lokr-bfl", "lokr"),
        ("lokr-bfl-thirds", "lokr"),
        ("lokr-simpletuner", "lokr"),
        ("lokr-lycoris", "lokr"),
        // Magnitudes of inputs are of the whole layer, those of outputs have rows.
        ("lycoris-locon-dora-in", "full"),
        ("lycoris-locon-dora-out", "lora"),
        ("lycoris-loha", "loha"),
        ("lycoris-lokr", "lokr"),
        ("lycoris-lokr-thirds", "lokr"),
        ("lycoris-oft", "oft"),
        // The bound is that of all blocks together.
        ("lycoris-oft-constraint", "full"),
        ("lycoris-full", "full"),
    ];
    FIXTURES.check_all(&uneven(), |name| format!("{name}.safetensors"), &cases);
}

#[test]
fn directories_of_peft_on_either_names_make_the_same_weights() {
    let cases = [
        ("lora", "lora"),
        ("dora-bfl", "lora"),
        // The triples are those of the whole layer.
        ("pissa-bfl", "full"),
        ("loha-bfl", "loha"),
        ("lokr-bfl", "lokr"),
        ("oft-bfl", "oft"),
        ("boft-bfl", "boft"),
        ("hra-bfl", "soda"),
    ];
    FIXTURES.check_all(&uneven(), |name| format!("peft/{name}"), &cases);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let networks = uneven();
    let qkv = "diffusion_model.double_blocks.0.img_attn.qkv";
    let to_q = "transformer.transformer_blocks.0.attn.to_q";
    let message = refusal(&lora(qkv, [127, 42], 2), &networks);
    assert!(message.contains("qkv.lora_B.weight has shape [127, 2]"), "{message}");
    assert!(message.contains("needs [126, 2]"), "{message}");
    // The sizes of the whole layer are named, and not those of a part.
    let message = refusal(&lora(qkv, [63, 42], 2), &networks);
    assert!(
        message.contains("has shape [63, 2]") && message.contains("needs [126, 2]"),
        "{message}"
    );

    let both = [lora(qkv, [126, 42], 2), lora(to_q, [42, 42], 2)].concat();
    let message = refusal(&both, &networks);
    assert!(message.contains("to_q.lora_A.weight and") && message.contains(qkv), "{message}");
    let [down, _] = lora(qkv, [126, 42], 2);
    let message = refusal(&[down], &networks);
    assert!(message.contains("not its B (up)"), "{message}");
    let mut scalar = lora(qkv, [126, 42], 2).to_vec();
    scalar.push((format!("{qkv}.scalar"), Vec::new()));
    assert!(refusal(&scalar, &networks).contains("trained scalar"));
}

#[test]
fn changes_of_norms_are_listed() {
    let networks = uneven();
    let norm = "diffusion_model.double_blocks.0.img_attn.norm.query_norm.diff".to_owned();
    let mut tensors = lora("diffusion_model.img_in", [42, 12], 2).to_vec();
    tensors.push((norm.clone(), vec![14]));
    let imported = read(&tensors, &networks).unwrap();
    assert_eq!(imported.unmatched, [norm]);
    assert_eq!(imported.matched, ["transformer.x_embedder.weight"]);
}

#[test]
fn a_file_for_another_architecture_is_named() {
    let networks = uneven();
    let qkv = "diffusion_model.double_blocks.0.img_attn.qkv";
    for (module, sizes, expected) in [
        ("lora_unet_input_blocks_4_1_proj_in", [64, 64], "is for Stable Diffusion, and"),
        ("unet.down_blocks.1.attentions.0.proj_in", [64, 64], "is for Stable Diffusion, and"),
        ("diffusion_model.double_blocks.0.img_mod.lin", [252, 42], "is for FLUX.1, and"),
        ("diffusion_model.double_blocks.7.img_attn.qkv", [126, 42], "is for a larger model, and"),
        ("transformer.single_transformer_blocks.2.attn.to_out", [42, 155], "is for a larger model"),
    ] {
        let mut tensors = lora(module, sizes, 2).to_vec();
        if expected.contains("model") || expected.contains("FLUX") {
            // This layer fits.
            tensors.extend(lora(qkv, [126, 42], 2));
        }
        let message = refusal(&tensors, &networks);
        assert!(message.contains(expected) && message.contains("the base is FLUX.2"), "{message}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    for (value, fits) in
        [("flux_2_klein_4b", true), ("flux1", false), ("sdxl_base_v1-0", false), ("sd_v1", false)]
    {
        write(&path, &lora(qkv, [126, 42], 2), &[("ss_base_model_version", value)]);
        assert_eq!(import(&path, &networks, "base").is_ok(), fits, "{value}");
    }
}

fn toyflux() -> Pipeline {
    let base = soda_testing::workspace_path("examples/toyflux/base");
    Pipeline::load(&base, &Device::default()).unwrap()
}

/// Shapes in toyflux: 192 channels, and 576 in the MLPs.
fn adapted() -> Vec<(String, Vec<usize>)> {
    let block = "transformer.transformer_blocks.1";
    [
        // Two of three, with an `A` each.
        lora(&format!("{block}.attn.to_q"), [192, 192], 2),
        lora(&format!("{block}.attn.to_v"), [192, 192], 3),
        lora(&format!("{block}.attn.add_k_proj"), [192, 192], 2),
        lora(&format!("{block}.attn.to_add_out"), [192, 192], 4),
        lora(&format!("{block}.ff_context.linear_in"), [1152, 192], 2),
        lora("transformer.single_transformer_blocks.5.attn.to_qkv_mlp_proj", [1728, 192], 2),
        lora("transformer.single_transformer_blocks.0.attn.to_out", [192, 768], 2),
        lora("transformer.norm_out.linear", [384, 192], 2),
        lora("transformer.single_stream_modulation.linear", [576, 192], 2),
    ]
    .concat()
}

#[test]
fn exported_files_have_the_names_of_their_tools_and_are_read_back() {
    let exported = Exported::new(&toyflux(), &adapted());
    assert_eq!(exported.changed, 9);
    let paths = &exported.files;
    let names = keys(&paths[0]);
    let qkv = "lora_unet_double_blocks_1_img_attn_qkv";
    // The rank is the sum of those of the parts.
    assert_eq!(names[&format!("{qkv}.lora_down.weight")], [5, 192]);
    assert_eq!(names[&format!("{qkv}.lora_up.weight")], [576, 5]);
    assert_eq!(names["lora_unet_final_layer_adaLN_modulation_1.lora_up.weight"], [384, 2]);
    assert_eq!(names.len(), 3 * 8);
    assert!(names.keys().all(|name| name.starts_with("lora_unet_") && !name.contains("attn_to_")));
    assert_eq!(keys(&paths[1]), adapted().into_iter().collect());
    let deltas = keys(&paths[2]);
    assert_eq!(deltas[&format!("{qkv}.diff")], [576, 192]);
    assert_eq!(deltas.len(), 8);
    exported.check_metadata(
        "https://github.com/black-forest-labs/flux2",
        &[
            ("ss_base_model_version", "flux_2_klein"),
            ("modelspec.architecture", "Flux.2-klein/lora"),
            ("modelspec.prediction_type", "flow"),
        ],
    );
    let [kohya, diffusers] = [&paths[0], &paths[1]].map(|path| metadata(path));
    assert_eq!((&*kohya["ss_network_dim"], &*kohya["ss_network_alpha"]), ("Dynamic", "5"));
    assert_eq!((&*diffusers["ss_network_dim"], &*diffusers["ss_network_alpha"]), ("Dynamic", "4"));
}

/// A layer of the original code keeps its rank, there and back.
#[test]
fn one_first_factor_of_queries_keys_and_values_stays_one() {
    let pipeline = toyflux();
    let networks = pipeline.networks();
    let qkv = lora("diffusion_model.double_blocks.0.txt_attn.qkv", [576, 192], 4);
    let ours = read(&qkv, &networks).unwrap();
    let parts = ["add_k_proj", "add_q_proj", "add_v_proj"];
    let parts = parts.map(|part| format!("transformer.transformer_blocks.0.attn.{part}.weight"));
    assert_eq!(ours.matched, parts);
    let plan = ours.file.plan(&networks).unwrap();
    let compressed = compress_to_lora(&plan, &networks, CompressionBudget::default()).unwrap();
    let ranks: BTreeSet<usize> = compressed.reports.iter().map(|layer| layer.rank).collect();
    assert_eq!(ranks, BTreeSet::from([4]));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kohya.safetensors");
    let settings = full_precision(&pipeline);
    write_kohya(&compressed, &settings, &path).unwrap();
    let name = |part: &str| format!("lora_unet_double_blocks_0_txt_attn_qkv.{part}");
    let names = keys(&path);
    assert_eq!(names[&name("lora_down.weight")], [4, 192]);
    assert_eq!(names[&name("lora_up.weight")], [576, 4]);
    assert_eq!(names[&name("alpha")], [0usize; 0]);
}
