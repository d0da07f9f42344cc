//! Weight files under other names and in other formats: accepted where they are the network that is computed here, refused
//! with the reason where they are not; and the verbs that look at them, convert them and import them.

#[path = "common/formula.rs"]
mod formula;
#[path = "common/program.rs"]
mod program;

use std::path::{Path, PathBuf};

use formula::{layout, table, weight_file};
use grad::Error;
use grad::backbone::{Backbone, Naming, Network};
use program::{new_folder, run};

/// timm's name of one of our keys.
fn timm(network: Network, key: &str) -> String {
    let Some(rest) = key.strip_prefix("_blocks.") else {
        return key.replace("_conv_stem", "conv_stem").replace("_bn0", "bn1");
    };
    let (index, rest) = rest.split_once('.').unwrap();
    let (mut repeat, mut stage) = (index.parse::<usize>().unwrap(), 0);
    while repeat >= table(network).1[stage][0] {
        (repeat, stage) = (repeat - table(network).1[stage][0], stage + 1);
    }
    // Depthwise-separable, then inverted residuals.
    let renamed: &[(&str, &str)] = match table(network).1[stage][3] {
        1 => &[("_bn1", "bn1"), ("_bn2", "bn2"), ("_project_conv", "conv_pw")],
        _ => &[
            ("_bn2", "bn3"),
            ("_bn1", "bn2"),
            ("_bn0", "bn1"),
            ("_project_conv", "conv_pwl"),
            ("_expand_conv", "conv_pw"),
        ],
    };
    let both = [("_depthwise_conv", "conv_dw"), ("_se_reduce", "se.conv_reduce"), ("_se_expand", "se.conv_expand")];
    let renamed = renamed.iter().chain(&both).find(|(ours, _)| rest.starts_with(ours)).unwrap();
    format!("blocks.{stage}.{repeat}.{}", rest.replace(renamed.0, renamed.1))
}

/// The formula weights in a file of this name, under other keys.
fn written(folder: &Path, name: &str, network: Network, key: impl Fn(&str) -> String) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, weight_file(network, |k, _, _| *k = key(k))).unwrap();
    path
}

#[test]
fn the_same_weights_under_any_names_are_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    for network in Network::ALL {
        let ours = written(folder.path(), "ours.safetensors", network, str::to_owned);
        let ours = Backbone::load(network, ours).unwrap();
        assert_eq!((ours.naming(), ours.doubts().len()), (Naming::Lukemelas, 0));
        for prefix in ["", "module.", "module.backbone.", "encoder.model."] {
            let theirs = written(folder.path(), "tf_efficientnet.safetensors", network, |k| format!("{prefix}{k}"));
            let theirs = Backbone::load(network, theirs).unwrap();
            assert_eq!(theirs.digest(), ours.digest(), "{network:?} below {prefix:?}");
        }
        let name = format!("tf_{}_aa-1.safetensors", network.name().replace('-', "_"));
        let theirs = written(folder.path(), &name, network, |k| timm(network, k));
        let theirs = Backbone::load(network, theirs).unwrap();
        assert_eq!((theirs.naming(), theirs.digest(), theirs.doubts().len()), (Naming::Timm, ours.digest(), 0));
    }
}

#[test]
fn another_value_or_network_is_other_weights() {
    let folder = tempfile::tempdir().unwrap();
    let load = |bytes: &[u8], network| {
        let path = folder.path().join("w.safetensors");
        std::fs::write(&path, bytes).unwrap();
        Backbone::load(network, path).unwrap()
    };
    let lite1 = load(&weight_file(Network::Lite1, |_, _, _| {}), Network::Lite1);
    let changed = weight_file(Network::Lite1, |key, _, bytes| bytes[0] ^= u8::from(key == "_blocks.9._bn2.bias"));
    assert_ne!(load(&changed, Network::Lite1).digest(), lite1.digest());
    // What earlier versions wrote into models, the digest of the file, is still good.
    let bytes = weight_file(Network::Lite1, |_, _, _| {});
    assert!(lite1.is(&lite1.digest().to_string()) && lite1.is(&blake3::hash(&bytes).to_string()));
    assert!(!lite1.is(&blake3::hash(&changed).to_string()));
}

#[test]
fn other_trainings_of_the_same_layers_are_refused() {
    let (folder, b4) = (tempfile::tempdir().unwrap(), Network::B4);
    let refused = |name: &str, key: &dyn Fn(&str) -> String, word: &str| {
        let error = Backbone::load(b4, written(folder.path(), name, b4, key)).err().expect("refused");
        assert!(matches!(error, Error::Model { .. }), "{error:?}");
        assert!(error.to_string().contains(word) && error.to_string().contains("6ed6700e"), "{error}");
    };
    let torchvision = |key: &str| match key {
        "_conv_stem.weight" => "features.0.0.weight".into(),
        "_blocks.0._depthwise_conv.weight" => "features.1.0.block.0.0.weight".into(),
        other => other.replace('_', "x"),
    };
    refused("efficientnet_b4_rwightman-23ab8bcd.pth", &torchvision, "symmetric zero padding");
    refused("efficientnet_b4_ra2_320-7eb33cd5.pth", &|k| timm(b4, k), "symmetric zero padding");
    refused("tf_efficientnet_b4_ap-dedb23e6.pth", &|k| timm(b4, k), "AdvProp");
    refused("resnet.pth", &|k| k.replace("_conv_stem", "conv1"), "under a name that is known here");
    let two = |k: &str| if k == "_bn0.weight" { "ema.conv_stem.weight".into() } else { k.to_owned() };
    let both = weight_file(b4, |k, shape, bytes| {
        *k = two(k);
        if k.starts_with("ema") {
            (*shape, *bytes) = (vec![1, 1, 1, 1], vec![0; 4]);
        }
    });
    let path = folder.path().join("two.safetensors");
    std::fs::write(&path, both).unwrap();
    assert!(Backbone::load(b4, path).err().unwrap().to_string().contains("holds 2 networks"));
    // Nothing tells which of timm's two it is: that is said.
    let named = |name: &str| Backbone::load(b4, written(folder.path(), name, b4, |k| timm(b4, k))).unwrap();
    assert!(named("model.safetensors").doubts()[0].contains("make sure"));
}

#[test]
fn digits_in_a_name_are_those_of_the_file() {
    let (folder, lite1) = (tempfile::tempdir().unwrap(), Network::Lite1);
    let bytes = weight_file(lite1, |_, _, _| {});
    let digits: String = {
        use sha2::Digest;
        sha2::Sha256::digest(&bytes).iter().take(4).map(|b| format!("{b:02x}")).collect()
    };
    for (name, doubts) in [
        (format!("efficientnet-lite1-{digits}.pth"), 0),
        ("efficientnet-lite1-77cc7160.pth".into(), 1),
        ("efficientnet-lite1-77cc716.pth".into(), 0),
        ("efficientnet-lite1-deadbeef.safetensors".into(), 0),
    ] {
        let path = folder.path().join(&name);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(Backbone::load(lite1, path).unwrap().doubts().len(), doubts, "{name}");
    }
}

#[test]
fn weights_are_inspected_and_converted() {
    let home = new_folder();
    let home = home.path();
    written(home, "tf_efficientnet_lite2.pth", Network::Lite2, |k| format!("module.{}", timm(Network::Lite2, k)));
    let inspected = run(home, &["weights", "inspect", "tf_efficientnet_lite2.pth", "--json"]).expect(0, &[]).json();
    assert_eq!((&inspected["network"], &inspected["fits"]), (&"efficientnet-lite2".into(), &true.into()));
    assert_eq!(inspected["names"], "timm, below \"module.\"");
    assert_eq!(inspected["tensors"].as_array().unwrap().len(), layout(Network::Lite2).len());
    let convert = ["weights", "convert", "tf_efficientnet_lite2.pth", "--to", "lite2.safetensors", "--json"];
    assert_eq!(run(home, &convert).expect(0, &[]).json()["digest"], inspected["digest"]);
    assert_eq!(std::fs::read(home.join("lite2.safetensors")).unwrap().len() % 8, 0);
    let again = Backbone::load(Network::Lite2, home.join("lite2.safetensors")).unwrap();
    assert_eq!((again.digest().to_string().into(), again.naming()), (inspected["digest"].clone(), Naming::Lukemelas));
    run(home, &convert).expect(2, &["is there already"]);

    let file = |name: &str| grad::check::root().join("fixtures").join(name).display().to_string();
    let checkpoint = file("official_crad-s.pth.tar");
    run(home, &["weights", "inspect", &checkpoint]).expect(0, &[]);
    let inspected = run(home, &["weights", "inspect", &checkpoint, "--json"]).expect(0, &[]).json();
    assert!(inspected["head"].as_str().unwrap().starts_with("crad-s on 4x4x8 features, 2 blocks"), "{inspected}");
    run(home, &["weights", "import", &checkpoint, "--out", "m.safetensors"]).expect(4, &["does not hold its backbone"]);
    written(home, "b4.safetensors", Network::B4, str::to_owned);
    let import = ["weights", "import", &checkpoint, "--out", "m.safetensors", "--backbone-weights", "b4.safetensors"];
    run(home, &import).expect(4, &["for 8 channels, efficientnet-b4 has 216"]);
    run(home, &["weights", "inspect", "gone.pth"]).expect(4, &["cannot be read"]);
    run(home, &["weights", "convert", &file("torch_zip.pth"), "--to", "x"]).expect(4, &["under a name that is known"]);
    run(home, &["train", "--backbone", "lite1"]).expect(2, &["lite1 has no built-in weights", "--backbone-weights"]);
}

#[test]
fn training_starts_from_a_model() {
    let home = new_folder();
    let home = home.path();
    let tiny = ["train", "--data", "data", "--image-size", "64", "--blocks", "1", "--batch", "4", "--epochs", "2"];
    run(home, &[&tiny[..], &["--out", "first", "--json"]].concat()).expect(0, &[]);
    let from = ["train", "--data", "data", "--from", "first", "--batch", "4", "--epochs", "1"];
    run(home, &[&from[..], &["--out", "second"]].concat())
        .expect(0, &["from first/model.safetensors, with fresh moments"]);
    let losses = |run: &str| -> Vec<f64> {
        let text = std::fs::read_to_string(home.join(run).join("train.jsonl")).unwrap();
        let loss = |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap();
        text.lines().map(loss).collect()
    };
    assert!(losses("second")[0] < losses("first")[0], "{:?} {:?}", losses("second"), losses("first"));
    // From a checkpoint with the optimiser's memory; and with settings that are not the model's.
    let checkpoint = ["--from", "first/checkpoint.safetensors", "--out", "third"];
    run(home, &[&tiny[..], &checkpoint].concat()).expect(0, &["memory of"]);
    run(home, &[&from[..], &["--blocks", "2", "--out", "fourth"]].concat()).expect(2, &["leave out"]);
    run(home, &[&from[..], &["--resume", "first"]].concat()).expect(2, &["--resume"]);
}
