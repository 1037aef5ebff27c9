//! Every mistake a person can make with targets, settings and files is an error that names it.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use burn::module::Module;
use burn::tensor::TensorData;
use common::{Net, header, recipe, targets};
use soda_adapters::lora::LoraConfig;
use soda_adapters::soda::SodaConfig;
use soda_adapters::{
    Adaptation, AdapterError, AdapterFile, Component, Method, MethodConfig, Targets,
};

fn check(result: Result<(), AdapterError>, needle: &str) {
    let message = result.unwrap_err().to_string();
    assert!(message.contains(needle), "{message}");
}

#[test]
fn of_targets_and_settings() {
    let net = Net::new();
    let method = SodaConfig::default();
    let plan = |pattern: &str| method.plan(&Targets(vec![pattern.into()]), &net).map(drop);
    check(plan("to_z"), "`to_z` matches no weight");
    check(plan("("), "not a regular expression");
    check(plan("bias"), "rank 4");
    check(method.plan(&Targets(Vec::new()), &net).map(drop), "attention");
    check(method.plan(&targets(), &net.clone().train()).map(drop), "autodiff");
    let nothing = SodaConfig { rotation: None, spectrum: None };
    check(nothing.plan(&targets(), &net).map(drop), "trains nothing");
    let lora = |lora: LoraConfig| lora.plan(&targets(), &net).map(drop);
    check(lora(LoraConfig { rank: 0, ..LoraConfig::default() }), "at least 1");
    let ranks = [("(".to_owned(), 3)].into();
    check(lora(LoraConfig { rank_pattern: ranks, ..LoraConfig::default() }), "`(`");
}

#[test]
fn of_an_adapter_that_does_not_fit() {
    let net = Net::new();
    let method = MethodConfig::default();
    let adapted = method.plan(&targets(), &net).unwrap().attach(net.clone());
    let good = Adaptation::capture(recipe(&method, &net), &adapted);
    let broken = |change: &dyn Fn(&mut Adaptation)| {
        let mut file = good.clone();
        change(&mut file);
        file.attach(net.clone()).map(drop)
    };
    let first = good.tensors.keys().next().unwrap().clone();
    check(good.attach(Net::new()).map(drop), "was trained on base");
    check(broken(&|file| file.recipe.method = LoraConfig::default().into()), "missing");
    check(broken(&|file| drop(file.tensors.remove(&first))), &first);
    check(
        broken(&|file| {
            let data = file.tensors[&first].clone();
            file.tensors.insert("stray".into(), data);
        }),
        "stray",
    );
    let short = TensorData::from([1.0f32]);
    check(broken(&|file| drop(file.tensors.insert(first.clone(), short.clone()))), "has shape [1]");
    let factor = good.tensors.keys().find(|key| key.contains("rotation")).unwrap().clone();
    check(
        broken(&|file| {
            let data = &file.tensors[&factor];
            let values: Vec<f32> = data.iter::<f32>().map(|value| value * 1.1).collect();
            let data = TensorData::new(values, data.shape());
            file.tensors.insert(factor.clone(), data);
        }),
        "not orthogonal",
    );
}

#[test]
fn of_a_damaged_file() {
    let net = Net::new();
    let method = MethodConfig::default();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    let adapted = method.plan(&targets(), &net).unwrap().attach(net.clone());
    let part = Adaptation::capture(recipe(&method, &net), &adapted);
    let file = AdapterFile::new(header()).with(Component::Unet, part);
    file.write(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let read = || <AdapterFile>::read(&path);
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let factors = metadata.metadata().as_ref().unwrap()["factors"].clone();
    let factors: std::collections::BTreeMap<usize, Vec<usize>> =
        serde_json::from_str(&factors).unwrap();
    assert!(factors.iter().all(|(width, sizes)| sizes.iter().product::<usize>() == *width));
    assert!(factors.contains_key(&12), "{factors:?}");
    for length in [0, 7, 8, 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert!(matches!(read(), Err(AdapterError::Malformed { .. })), "{length}");
    }
    let text = |from: &str, to: &str| {
        let mut changed = bytes.clone();
        let at = changed.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        changed[at..at + from.len()].copy_from_slice(to.as_bytes());
        std::fs::write(&path, changed).unwrap();
        read().unwrap_err()
    };
    assert!(matches!(text("\"version\":\"3\"", "\"version\":\"9\""), AdapterError::Version { .. }));
    assert!(matches!(text("soda-adapter", "dora-adapter"), AdapterError::NotAnAdapter { .. }));
    let signs = text("of U positive", "of V positive");
    assert!(matches!(signs, AdapterError::Signs { .. }) && signs.to_string().contains("of V"));
    let other = text(r#"\"name\":\"soda\""#, r#"\"name\":\"sods\""#).to_string();
    assert!(other.contains("sods") && other.contains("lora"), "{other}");
    let stray = text(r#""unet.conv.weight"#, r#""yeti.conv.weight"#).to_string();
    assert!(stray.contains("1 unknown (such as yeti.conv.weight."), "{stray}");
    let missing = <AdapterFile>::read(&folder.path().join("none")).unwrap_err().to_string();
    assert!(missing.contains("cannot read adapter file"), "{missing}");
    let nowhere = folder.path().join("no/such/folder/a.safetensors");
    assert!(matches!(file.write(&nowhere), Err(AdapterError::Io { action: "write", .. })));
}
