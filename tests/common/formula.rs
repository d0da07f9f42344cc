//! Weights that both sides compute from a formula (`fixtures/README.md`, "Backbones"), in files of any names.

#![allow(dead_code)] // each test uses its part

use grad::backbone::{Backbone, Network};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// 64 random bits of a name and an index.
pub fn bits(name: &str, i: u64) -> u64 {
    let hash = name.bytes().fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
    let mut z = hash.wrapping_add(i).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Value `i` of the formula weights.
pub fn formula(key: &str, shape: &[usize], i: usize) -> f32 {
    let u = (bits(key, i as u64) >> 40) as f64 / f64::from(1 << 24);
    let squeeze = if key.contains("_se_") { 2.0 } else { 1.0 };
    let value = if shape.len() == 4 {
        let fan_in: usize = shape[1..].iter().product();
        (u - 0.5) * 2.0 * ((3.0 / fan_in as f64).sqrt() * squeeze)
    } else if key.ends_with("running_var") {
        0.35 + 0.3 * u
    } else if key.contains("_bn") && key.ends_with(".weight") {
        0.75 + 0.5 * u
    } else {
        (u - 0.5) * if squeeze == 2.0 { 2.0 } else { 0.2 }
    };
    value as f32
}

/// Repeats, inputs, outputs, expansion, kernel: the block tables, written down a second time.
pub fn table(network: Network) -> (usize, [[usize; 5]; 5]) {
    match network {
        Network::Lite0 => {
            (32, [[1, 32, 16, 1, 3], [2, 16, 24, 6, 3], [2, 24, 40, 6, 5], [3, 40, 80, 6, 3], [3, 80, 112, 6, 5]])
        }
        Network::Lite1 => {
            (32, [[1, 32, 16, 1, 3], [3, 16, 24, 6, 3], [3, 24, 40, 6, 5], [4, 40, 80, 6, 3], [4, 80, 112, 6, 5]])
        }
        Network::Lite2 => {
            (32, [[1, 32, 16, 1, 3], [3, 16, 24, 6, 3], [3, 24, 48, 6, 5], [4, 48, 88, 6, 3], [4, 88, 120, 6, 5]])
        }
        Network::B4 => {
            (48, [[2, 48, 24, 1, 3], [4, 24, 32, 6, 3], [4, 32, 56, 6, 5], [6, 56, 112, 6, 3], [6, 112, 160, 6, 5]])
        }
    }
}

pub type Layout = Vec<(String, Vec<usize>)>;

/// Keys and shapes of a published weight file, as far as the second tap.
pub fn layout(network: Network) -> Layout {
    fn norm(keys: &mut Layout, name: String, width: usize) {
        let parts = ["weight", "bias", "running_mean", "running_var"];
        keys.extend(parts.map(|p| (format!("{name}.{p}"), vec![width])));
    }
    let (stem, stages) = table(network);
    let mut keys = vec![("_conv_stem.weight".to_owned(), vec![stem, 3, 3, 3])];
    norm(&mut keys, "_bn0".into(), stem);
    let blocks = stages.iter().flat_map(|&[n, i, o, e, k]| (0..n).map(move |r| [if r == 0 { i } else { o }, o, e, k]));
    for (at, [inputs, outputs, expand, k]) in blocks.enumerate() {
        let (hidden, block) = (inputs * expand, format!("_blocks.{at}"));
        if expand > 1 {
            keys.push((format!("{block}._expand_conv.weight"), vec![hidden, inputs, 1, 1]));
            norm(&mut keys, format!("{block}._bn0"), hidden);
        }
        keys.push((format!("{block}._depthwise_conv.weight"), vec![hidden, 1, k, k]));
        norm(&mut keys, format!("{block}._bn1"), hidden);
        if network == Network::B4 {
            let squeezed = inputs / 4;
            for (part, shape) in [("_se_reduce", [squeezed, hidden]), ("_se_expand", [hidden, squeezed])] {
                keys.push((format!("{block}.{part}.weight"), vec![shape[0], shape[1], 1, 1]));
                keys.push((format!("{block}.{part}.bias"), vec![shape[0]]));
            }
        }
        keys.push((format!("{block}._project_conv.weight"), vec![outputs, hidden, 1, 1]));
        norm(&mut keys, format!("{block}._bn2"), outputs);
    }
    keys
}

/// A weight file of the formula weights, changed by `edit`.
pub fn weight_file(network: Network, edit: impl Fn(&mut String, &mut Vec<usize>, &mut Vec<u8>)) -> Vec<u8> {
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = layout(network)
        .into_iter()
        .map(|(mut key, mut shape)| {
            let count = shape.iter().product();
            let mut bytes = (0..count).flat_map(|i| formula(&key, &shape, i).to_le_bytes()).collect();
            edit(&mut key, &mut shape, &mut bytes);
            (key, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(k, s, b)| (k, TensorView::new(Dtype::F32, s.clone(), b).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

pub fn load(network: Network, bytes: &[u8]) -> grad::Result<Backbone> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    std::fs::write(&path, bytes).unwrap();
    Backbone::load(network, path)
}
