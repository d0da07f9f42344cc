//! Pictures and masks, from folders to what the network is fed.
//!
//! ```text
//! folder -> layout -> items;  item -> decode -> resize (Pillow, to the bit) -> (v/255 − mean)/std -> [size, size, 3]
//! ```
//! Training and testing prepare a picture the same way, with no augmentation (specification 3), so whatever a frozen
//! backbone makes of it is a constant.

pub mod check;
pub mod decode;
pub mod demo;
pub mod finding;
mod hold_out;
pub mod layout;
pub mod mask;
pub mod resize;

pub use decode::{Mask, Picture, decode_bytes, decode_file, decode_mask};
pub use hold_out::hold_out;
pub use layout::{Dataset, Item, Label, Layout, Source, Split};
pub use mask::MaskRule;

use std::path::Path;

use crate::Result;

/// Resizes a picture to `size` by `size` pixels, whatever its shape, and normalises it: `(v/255 − mean)/std` in f32, as
/// torchvision's `ToTensor` and `Normalize` do it. Returns `[size, size, 3]`, RGB; `mean` and `std` are RGB too.
pub fn preprocess(picture: &Picture, size: usize, mean: [f32; 3], std: [f32; 3]) -> Vec<f32> {
    let (table, bytes) = (normalisation(mean, std), resized(picture, size));
    let mut values = vec![0.0; bytes.len()];
    for (pixel, bytes) in values.as_chunks_mut::<3>().0.iter_mut().zip(bytes.as_chunks::<3>().0) {
        for c in 0..3 {
            pixel[c] = table[c][usize::from(bytes[c])];
        }
    }
    values
}

/// The first half of [`preprocess`]: bytes `[size, size, 3]`, RGB.
pub fn resized(picture: &Picture, size: usize) -> Vec<u8> {
    resize::Bilinear::new((picture.width, picture.height), (size, size)).apply(&picture.rgb, 3)
}

/// The second half: what each byte of each colour becomes. A byte has 256 values: three divisions each, done once.
pub fn normalisation(mean: [f32; 3], std: [f32; 3]) -> [[f32; 256]; 3] {
    std::array::from_fn(|c| std::array::from_fn(|v| (v as f32 / 255.0 - mean[c]) / std[c]))
}

/// Where the defects of a picture are: `[size, size]`, 1 where any of its masks is anything but 0. Without a mask a good
/// picture is all 0 and a defective one all 1. (Specification 3, step 4.)
///
/// # Errors
/// As [`decode_mask`].
pub fn load_mask(item: &Item, size: usize) -> Result<Vec<u8>> {
    load_mask_by(item, size, MaskRule::Nearest)
}

/// As [`load_mask`], brought to `[size, size]` by another rule.
///
/// # Errors
/// As [`decode_mask`].
pub fn load_mask_by(item: &Item, size: usize, rule: MaskRule) -> Result<Vec<u8>> {
    if item.masks.is_empty() {
        return Ok(vec![u8::from(!item.label.is_good()); size * size]);
    }
    let masks = item.masks.iter().map(|path| decode_mask(path)).collect::<Result<Vec<_>>>()?;
    Ok(union(&masks, size, rule))
}

/// What masks that are decoded already mark together.
fn union(masks: &[Mask], size: usize, rule: MaskRule) -> Vec<u8> {
    let mut union = vec![0; size * size];
    for mask in masks {
        union.iter_mut().zip(rule.apply(mask, size)).for_each(|(all, v)| *all |= u8::from(v > 0));
    }
    union
}

/// A fingerprint of the bytes of a file: the first 64 bits of their BLAKE3 hash.
///
/// # Errors
/// [`crate::Error::Io`] when it cannot be read.
pub fn fingerprint(path: &Path) -> Result<u64> {
    let bytes = std::fs::read(path).map_err(|e| crate::Error::io("read", path, &e))?;
    let hash = blake3::hash(&bytes);
    Ok(u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
    const STD: [f32; 3] = [0.229, 0.224, 0.225];

    /// torch: `((torch.tensor([0, 1, 127, 128, 254, 255], dtype=torch.uint8).float() / 255) - mean) / std`, as bits.
    #[test]
    fn normalisation_is_torch_to_the_bit() {
        let want: [[u32; 6]; 3] = [
            [0xC007_8BBD, 0xC006_732B, 0x3D69_39A6, 0x3D97_AF32, 0x400E_D58A, 0x400F_EE1D],
            [0xC002_4924, 0xC001_2A4F, 0x3E40_2DE4, 0x3E52_1B48, 0x401A_4EE0, 0x401B_6DB7],
            [0xBFE6_F809, 0xBFE4_BCEA, 0x3ED1_70BD, 0x3EDA_5D3C, 0x4027_D834, 0x4028_F5C3],
        ];
        let rgb = [0u8, 1, 127, 128, 254, 255].iter().flat_map(|&v| [v; 3]).collect();
        let picture = Picture { width: 6, height: 1, rgb };
        // Rows only are repeated by the resize: the width stays.
        let got = preprocess(&picture, 6, MEAN, STD);
        assert_eq!(got.len(), 6 * 6 * 3);
        for (at, value) in got.iter().enumerate() {
            assert_eq!(value.to_bits(), want[at % 3][at / 3 % 6], "{at}: {value}");
        }
    }

    /// Names that shells and web pages trip over, a picture smaller than the network, and one that is black.
    #[test]
    fn any_name_and_any_size_can_be_prepared() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("line 3 – größe 検査.PNG");
        for (width, height) in [(1, 1), (3, 200), (500, 7)] {
            image::GrayImage::new(width, height).save_with_format(&file, image::ImageFormat::Png).unwrap();
            let prepared = preprocess(&decode_file(&file).unwrap(), 224, MEAN, STD);
            assert_eq!(prepared.len(), 224 * 224 * 3);
            assert!(prepared.chunks(3).all(|pixel| (0..3).all(|c| pixel[c] == -MEAN[c] / STD[c])));
        }
    }

    #[test]
    fn a_mask_is_resized_and_made_of_zeros_and_ones() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("0_mask.png");
        // 4 x 2: nearest to 2 x 2 picks columns 1 and 3.
        image::GrayImage::from_raw(4, 2, vec![9, 0, 9, 1, 0, 255, 0, 0]).unwrap().save(&file).unwrap();
        let mut item = Item {
            path: folder.path().join("0.png"),
            class: 0,
            split: Split::Test,
            label: Label::Defect("bent".into()),
            masks: vec![file.clone()],
        };
        assert_eq!(load_mask(&item, 2).unwrap(), [0, 1, 1, 0]);
        // Another one of another size, with a defect in its last quarter: the union of both.
        let second = folder.path().join("second.png");
        image::GrayImage::from_raw(2, 2, vec![0, 0, 0, 254]).unwrap().save(&second).unwrap();
        item.masks.push(second);
        assert_eq!(load_mask(&item, 2).unwrap(), [0, 1, 1, 1]);
        item.masks.clear();
        assert_eq!(load_mask(&item, 2).unwrap(), [1; 4]);
        item.label = Label::Good;
        assert_eq!(load_mask(&item, 2).unwrap(), [0; 4]);
        item.masks = vec![folder.path().join("gone.png")];
        assert!(load_mask(&item, 2).unwrap_err().to_string().contains("gone.png"));
    }
}
