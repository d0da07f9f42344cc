//! Picture files to bytes, as OpenCV's `IMREAD_COLOR` reads them (specification 3, step 1): 8 bits, three channels, alpha
//! dropped, grey replicated, 16 bits cut to their upper 8, EXIF orientation applied. RGB order, `[H, W, 3]`.
//!
//! The format is taken from the content. A file that ends early is an error even where a decoder would fill the rest
//! with grey: a grey half would train, or score, as if it had been photographed.

use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, Limits};

use crate::{Error, Result};

/// Extensions of the files that count as pictures in a folder, in lower case.
pub const EXTENSIONS: [&str; 12] =
    ["png", "jpg", "jpeg", "bmp", "tif", "tiff", "webp", "pnm", "ppm", "pgm", "pbm", "jfif"];

/// Bytes a decoder may ask for. A file of a few bytes can claim a picture of many gigabytes.
const MAX_BYTES: u64 = 1 << 30;

const READABLE: &str = "PNG, JPEG, BMP, TIFF, WebP and PNM can be read";

/// A decoded picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Pixels per row, at least 1.
    pub width: usize,
    /// Rows, at least 1.
    pub height: usize,
    /// Red, green, blue: `[height, width, 3]`.
    pub rgb: Vec<u8>,
}

/// How a file stores the pixels of a picture. Whatever it is, they become RGB of 8 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mode {
    /// Bits per channel: 8, or 16 of which the upper 8 are used. A palette or fewer bits count as 8.
    pub bits: u8,
    /// Whether there is more than brightness. The four inks of print count as colour.
    pub colour: bool,
    /// Whether there is a transparency, which is dropped.
    pub alpha: bool,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let colour = if self.colour { "colour" } else { "grey" };
        write!(f, "{}-bit {colour}{}", self.bits, if self.alpha { " with alpha" } else { "" })
    }
}

/// A decoded mask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// Pixels per row, at least 1.
    pub width: usize,
    /// Rows, at least 1.
    pub height: usize,
    /// `[height, width]`; 0 is good, anything else a defect.
    pub grey: Vec<u8>,
}

/// Reads and decodes a picture file.
///
/// # Errors
/// [`Error::Io`] when it cannot be read, [`Error::Data`] when what is in it is no picture, or only part of one.
pub fn decode_file(path: &Path) -> Result<Picture> {
    decode_bytes(path, &read(path)?)
}

/// Decodes a picture that has been read already; `path` is for messages only.
///
/// # Errors
/// [`Error::Data`] when the bytes are no picture, or only part of one.
pub fn decode_bytes(path: &Path, bytes: &[u8]) -> Result<Picture> {
    Ok(decode_with_mode(path, bytes)?.0)
}

/// As [`decode_bytes`], with how the file stores its pixels.
///
/// # Errors
/// As [`decode_bytes`].
pub fn decode_with_mode(path: &Path, bytes: &[u8]) -> Result<(Picture, Mode)> {
    let (image, mode) = open(path, bytes)?;
    let (width, height) = (image.width() as usize, image.height() as usize);
    let rgb = match image {
        DynamicImage::ImageRgb8(p) => p.into_raw(),
        DynamicImage::ImageRgba8(p) => p.pixels().flat_map(|p| [p[0], p[1], p[2]]).collect(),
        DynamicImage::ImageLuma8(p) => p.pixels().flat_map(|p| [p[0]; 3]).collect(),
        DynamicImage::ImageLumaA8(p) => p.pixels().flat_map(|p| [p[0]; 3]).collect(),
        DynamicImage::ImageRgb16(p) => p.pixels().flat_map(|p| [p[0], p[1], p[2]]).map(upper).collect(),
        DynamicImage::ImageRgba16(p) => p.pixels().flat_map(|p| [p[0], p[1], p[2]]).map(upper).collect(),
        DynamicImage::ImageLuma16(p) => p.pixels().flat_map(|p| [upper(p[0]); 3]).collect(),
        DynamicImage::ImageLumaA16(p) => p.pixels().flat_map(|p| [upper(p[0]); 3]).collect(),
        other => return Err(floating(path, &other)),
    };
    Ok((Picture { width, height, rgb }, mode))
}

/// Reads and decodes a mask. A pixel is 0 where every colour channel is 0, else the largest of them; a channel of 16 bits
/// is cut to 8 but never to 0, so that a mask of small numbers keeps its defects. Alpha is dropped.
///
/// # Errors
/// As [`decode_file`].
pub fn decode_mask(path: &Path) -> Result<Mask> {
    let (image, _) = open(path, &read(path)?)?;
    let (width, height) = (image.width() as usize, image.height() as usize);
    let largest = |channels: &[u8]| channels.iter().copied().max().unwrap_or(0);
    let largest16 = |channels: &[u16]| channels.iter().map(|&v| upper(v).max(u8::from(v > 0))).max().unwrap_or(0);
    let grey = match image {
        DynamicImage::ImageLuma8(p) => p.into_raw(),
        DynamicImage::ImageLumaA8(p) => p.pixels().map(|p| p[0]).collect(),
        DynamicImage::ImageRgb8(p) => p.pixels().map(|p| largest(&p.0)).collect(),
        DynamicImage::ImageRgba8(p) => p.pixels().map(|p| largest(&p.0[..3])).collect(),
        DynamicImage::ImageLuma16(p) => p.pixels().map(|p| largest16(&p.0)).collect(),
        DynamicImage::ImageLumaA16(p) => p.pixels().map(|p| largest16(&p.0[..1])).collect(),
        DynamicImage::ImageRgb16(p) => p.pixels().map(|p| largest16(&p.0)).collect(),
        DynamicImage::ImageRgba16(p) => p.pixels().map(|p| largest16(&p.0[..3])).collect(),
        other => return Err(floating(path, &other)),
    };
    Ok(Mask { width, height, grey })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::io("read", path, &e))
}

/// Upper byte, as OpenCV cuts it; not the nearest value.
fn upper(value: u16) -> u8 {
    (value >> 8) as u8
}

fn floating(path: &Path, image: &DynamicImage) -> Error {
    let what = format!("holds pixels of type {:?}, whose white is not known", image.color());
    Error::data(path, what, "save it with 8 or 16 bits a channel")
}

/// Decodes with limits, and turns the picture the way its EXIF orientation says.
fn open(path: &Path, bytes: &[u8]) -> Result<(DynamicImage, Mode)> {
    if bytes.is_empty() {
        return Err(Error::data(path, "is empty (0 bytes)", "copy or export the picture again, or remove the file"));
    }
    let refuse = |error: ImageError| refusal(path, &error);
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| refuse(e.into()))?;
    if reader.format().is_none() {
        return Err(Error::data(path, "is not a picture", format!("{READABLE}; remove the file or convert it")));
    }
    if bytes.starts_with(&[0xFF, 0xD8]) && !jpeg_is_whole(bytes) {
        return Err(cut_short(path, "the JPEG data has no end"));
    }
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_BYTES);
    let mut decoder = {
        let mut reader = reader;
        reader.limits(limits.clone());
        reader.into_decoder().map_err(refuse)?
    };
    limits.reserve(decoder.total_bytes()).map_err(|_| {
        let (w, h) = decoder.dimensions();
        let help = format!("pictures up to {} MiB are decoded: make it smaller", MAX_BYTES >> 20);
        Error::data(path, format!("says it is {w}x{h} pixels, too large to decode"), help)
    })?;
    let orientation = decoder.orientation().map_err(refuse)?;
    let color = decoder.color_type();
    let bits = 8 * (color.bytes_per_pixel() / color.channel_count());
    let mode = Mode { bits, colour: color.has_color(), alpha: color.has_alpha() };
    let mut image = DynamicImage::from_decoder(decoder).map_err(refuse)?;
    image.apply_orientation(orientation);
    if image.width() == 0 || image.height() == 0 {
        return Err(Error::data(path, "has no pixels", "remove the file"));
    }
    Ok((image, mode))
}

fn refusal(path: &Path, error: &ImageError) -> Error {
    match error {
        ImageError::Unsupported(e) => {
            Error::data(path, format!("cannot be read: {e}"), format!("{READABLE}; convert it to PNG"))
        }
        ImageError::Limits(_) => Error::data(
            path,
            "needs too much memory to decode",
            format!("make it smaller than {} MiB", MAX_BYTES >> 20),
        ),
        other => cut_short(path, &other.to_string()),
    }
}

fn cut_short(path: &Path, cause: &str) -> Error {
    Error::data(path, format!("is cut short or damaged: {cause}"), "copy or export it again, or remove it")
}

/// Whether the marker that ends a JPEG comes after its first scan. Walks the segments, because the thumbnail inside the
/// EXIF segment has an end of its own. (ITU-T T.81, B.1.)
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    const SCAN: u8 = 0xDA;
    const END: u8 = 0xD9;
    let mut at = 2;
    let mut scanned = false;
    while let (Some(&prefix), Some(&marker)) = (bytes.get(at), bytes.get(at + 1)) {
        match (prefix, marker) {
            (0xFF, END) => return scanned,
            // A stuffed zero, a restart, a fill byte, or entropy-coded data.
            (0xFF, 0x00 | 0x01 | 0xD0..=0xD8) => at += 2,
            (0xFF, 0xFF) => at += 1,
            (0xFF, _) => {
                scanned |= marker == SCAN;
                let Some(length) = bytes.get(at + 2..at + 4) else { return false };
                at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]]));
            }
            _ => at += 1,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use image::{ExtendedColorType, ImageEncoder, ImageFormat};
    use safetensors::SafeTensors;

    use super::*;

    const FIXTURES: &[u8] = include_bytes!("../../fixtures/resize.safetensors");

    fn path() -> &'static Path {
        Path::new("line 3/übung.png")
    }

    fn png(width: u32, height: u32, color: ExtendedColorType, bytes: &[u8]) -> Vec<u8> {
        let mut file = Vec::new();
        image::codecs::png::PngEncoder::new(&mut file).write_image(bytes, width, height, color).unwrap();
        file
    }

    fn native(values: &[u16]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_ne_bytes()).collect()
    }

    /// What a user is told, which must name the file and end in advice.
    fn told(bytes: &[u8]) -> String {
        let error = decode_bytes(path(), bytes).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        let text = error.to_string();
        assert!(text.starts_with("line 3/übung.png: ") && text.contains("\n  help: "), "{text}");
        text
    }

    fn fixture(name: &str) -> (Vec<u8>, Picture) {
        let fixtures = SafeTensors::deserialize(FIXTURES).unwrap();
        let rgb = fixtures.tensor(&format!("decode/{name}/rgb")).unwrap();
        let file = fixtures.tensor(&format!("decode/{name}/file")).unwrap().data().to_vec();
        (file, Picture { height: rgb.shape()[0], width: rgb.shape()[1], rgb: rgb.data().to_vec() })
    }

    fn largest_difference(name: &str) -> u8 {
        let (file, want) = fixture(name);
        let got = decode_bytes(path(), &file).unwrap();
        assert_eq!((got.width, got.height), (want.width, want.height), "{name}");
        got.rgb.iter().zip(&want.rgb).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
    }

    #[test]
    fn lossless_files_are_what_opencv_reads() {
        for name in ["palette.png", "palette_transparent.png", "one_bit.png"] {
            assert_eq!(largest_difference(name), 0, "{name}");
        }
    }

    /// Decoders of JPEG may differ in the inverse transform, the upsampling of colour, and the ink model.
    #[test]
    fn jpeg_files_are_near_what_opencv_reads() {
        for name in ["cmyk.jpg", "progressive.jpg", "turned_3.jpg", "turned_6.jpg", "turned_8.jpg"] {
            let difference = largest_difference(name);
            assert!(difference <= 4, "{name}: {difference}");
        }
    }

    #[test]
    fn every_kind_of_pixel_becomes_rgb() {
        use ExtendedColorType::{L8, L16, La8, La16, Rgb8, Rgb16, Rgba8, Rgba16};
        let decode = |color, bytes: &[u8]| decode_bytes(path(), &png(2, 1, color, bytes)).unwrap().rgb;
        assert_eq!(decode(L8, &[7, 200]), [7, 7, 7, 200, 200, 200]);
        assert_eq!(decode(La8, &[7, 0, 200, 9]), [7, 7, 7, 200, 200, 200]);
        assert_eq!(decode(Rgb8, &[1, 2, 3, 4, 5, 6]), [1, 2, 3, 4, 5, 6]);
        assert_eq!(decode(Rgba8, &[1, 2, 3, 0, 4, 5, 6, 9]), [1, 2, 3, 4, 5, 6]);
        // 0x12FF would round up to 0x13.
        assert_eq!(decode(L16, &native(&[0x12FF, 0xFFFF])), [0x12, 0x12, 0x12, 255, 255, 255]);
        assert_eq!(decode(La16, &native(&[0x12FF, 0, 0xFF, 9])), [0x12, 0x12, 0x12, 0, 0, 0]);
        let wide = [0x1FF, 0x2FF, 0x3FF, 0x4FF, 0x5FF, 0x6FF];
        assert_eq!(decode(Rgb16, &native(&wide)), [1, 2, 3, 4, 5, 6]);
        let wide = [0x1FF, 0x2FF, 0x3FF, 0, 0x4FF, 0x5FF, 0x6FF, 9];
        assert_eq!(decode(Rgba16, &native(&wide)), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn the_mode_is_that_of_the_file() {
        use ExtendedColorType::{L8, La16, Rgb16, Rgba8};
        let mode = |bytes: &[u8]| decode_with_mode(path(), bytes).unwrap().1.to_string();
        assert_eq!(mode(&png(1, 1, L8, &[7])), "8-bit grey");
        assert_eq!(mode(&png(1, 1, Rgba8, &[7; 4])), "8-bit colour with alpha");
        assert_eq!(mode(&png(1, 1, La16, &[7; 4])), "16-bit grey with alpha");
        assert_eq!(mode(&png(1, 1, Rgb16, &[7; 6])), "16-bit colour");
        assert_eq!(mode(&fixture("cmyk.jpg").0), "8-bit colour");
    }

    #[test]
    fn every_format_is_known_by_its_content() {
        let pixels: Vec<u8> = (0..5 * 3 * 3).map(|i| (i * 37 % 256) as u8).collect();
        let image = image::RgbImage::from_raw(5, 3, pixels.clone()).unwrap();
        for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::WebP, ImageFormat::Pnm] {
            let mut file = Cursor::new(Vec::new());
            image.write_to(&mut file, format).unwrap();
            let got = decode_bytes(path(), file.get_ref()).unwrap();
            assert_eq!(got, Picture { width: 5, height: 3, rgb: pixels.clone() }, "{format:?}");
        }
    }

    #[test]
    fn a_picture_of_one_pixel_is_a_picture() {
        let one = decode_bytes(path(), &png(1, 1, ExtendedColorType::L8, &[9])).unwrap();
        assert_eq!(one, Picture { width: 1, height: 1, rgb: vec![9; 3] });
    }

    #[test]
    fn a_file_that_is_no_picture_is_named() {
        assert!(told(b"").contains("is empty"));
        assert!(told(b"not a picture, whatever its name says").contains("is not a picture"));
        assert!(told(b"GIF89a\x01\x00\x01\x00\x00\x00\x00;").contains("convert it to PNG"));
        let missing = decode_file(Path::new("nowhere/at all.png")).unwrap_err();
        assert!(missing.to_string().starts_with("cannot read nowhere/at all.png"), "{missing}");
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let (jpeg, _) = fixture("turned_6.jpg");
        let (progressive, _) = fixture("progressive.jpg");
        let (palette, _) = fixture("palette.png");
        for file in [jpeg, progressive, palette] {
            for length in 0..file.len() - 12 {
                told(&file[..length]);
            }
        }
    }

    #[test]
    fn damaged_bytes_never_panic() {
        for name in ["cmyk.jpg", "progressive.jpg", "palette.png", "one_bit.png"] {
            let (file, _) = fixture(name);
            for at in 0..file.len() {
                let mut bytes = file.clone();
                bytes[at] ^= 0xA5;
                if let Err(error) = decode_bytes(path(), &bytes) {
                    assert_eq!(error.exit_code(), 3, "{error}");
                }
            }
        }
    }

    /// Width and height set to 65535 in the header of a small file.
    #[test]
    fn a_bomb_is_refused() {
        let (mut jpeg, _) = fixture("turned_6.jpg");
        let frame = jpeg.windows(2).position(|w| w == [0xFF, 0xC0]).unwrap();
        jpeg[frame + 5..frame + 9].fill(0xFF);
        assert!(told(&jpeg).contains("65535x65535"));
        assert!(told(b"P6 60000 60000 255\n").contains("60000x60000"));
    }

    #[test]
    fn the_thumbnail_is_not_the_picture() {
        let (mut jpeg, _) = fixture("turned_6.jpg");
        let end = jpeg.len() - 2;
        // A comment that looks like the end of a picture, in a file that has none.
        jpeg.splice(2..2, [0xFF, 0xFE, 0, 4, 0xFF, 0xD9]);
        assert!(decode_bytes(path(), &jpeg).is_ok());
        assert!(told(&jpeg[..end]).contains("cut short"));
    }

    #[test]
    fn a_mask_keeps_every_defect() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mask.png");
        let decode = |color, bytes: &[u8]| {
            std::fs::write(&file, png(3, 1, color, bytes)).unwrap();
            decode_mask(&file).unwrap().grey
        };
        assert_eq!(decode(ExtendedColorType::L8, &[0, 1, 255]), [0, 1, 255]);
        assert_eq!(decode(ExtendedColorType::L16, &native(&[0, 1, 0x3412])), [0, 1, 0x34]);
        assert_eq!(decode(ExtendedColorType::Rgb8, &[0, 0, 0, 0, 0, 1, 9, 2, 3]), [0, 1, 9]);
        assert_eq!(decode(ExtendedColorType::Rgba8, &[0, 0, 0, 255, 0, 5, 0, 0, 9, 2, 3, 0]), [0, 5, 9]);
        std::fs::write(&file, b"").unwrap();
        assert!(decode_mask(&file).unwrap_err().to_string().contains("is empty"));
    }
}
