//! Small pictures inside the page: JPEG for photographs, PNG for maps, which must keep their edges.

use std::borrow::Cow;
use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::imageops::{self, FilterType};
use image::{ExtendedColorType, ImageEncoder, RgbImage};

use super::data::{ChannelMap, Panels};
use super::html::data_uri;
use crate::heatmap::{Scale, outline, overlay};
use crate::{Error, Result};

/// Longest side of a picture on the page, pixels.
const SIDE: u32 = 320;
const QUALITY: u8 = 80;

/// An encoded picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thumbnail {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// Media type, for example `image/jpeg`.
    pub mime: &'static str,
    /// The file.
    pub bytes: Vec<u8>,
}

impl Thumbnail {
    /// A photograph, made smaller if its longest side is above 320 pixels.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is empty.
    pub fn photograph(picture: &RgbImage) -> Result<Self> {
        refuse_empty(picture)?;
        jpeg(&shrink(picture))
    }

    /// The file as the address of an image.
    pub(super) fn uri(&self) -> String {
        data_uri(self.mime, &self.bytes)
    }
}

/// The views of a picture: as it is, under its heat map with the map value `contour` outlined, with its mask outlined.
/// `map` is `[h, w]` with its sizes, `mask` likewise (0 is good); both are stretched over the picture.
///
/// # Errors
/// [`Error::Shape`] if map or mask do not have their sizes or anything is empty; [`Error::Data`] if the map holds a NaN
/// or an infinity.
pub fn panels(
    picture: &RgbImage,
    (map, h, w): (&[f32], usize, usize),
    scale: Scale,
    contour: f32,
    mask: Option<(&[u8], usize, usize)>,
) -> Result<Panels> {
    refuse_empty(picture)?;
    let small = shrink(picture);
    let outlined = |(mask, h, w): (&[u8], usize, usize)| -> Result<Thumbnail> {
        let (width, height) = small.dimensions();
        let mask = shrink_mask(mask, [h, w], [height as usize, width as usize])?;
        let mut picture = small.clone().into_owned();
        outline(&mut picture, &mask, 0.5);
        jpeg(&picture)
    };
    Ok(Panels {
        original: jpeg(&small)?,
        overlay: jpeg(&overlay(&small, map, h, w, scale, Some(contour))?)?,
        outline: mask.map(outlined).transpose()?,
    })
}

/// A channel as a grey picture, black at `low`, white at `high`, one pixel per value.
pub(super) fn grey(map: &ChannelMap, [low, high]: [f32; 2]) -> Option<Thumbnail> {
    let (width, height) = (u32::try_from(map.width).ok()?, u32::try_from(map.height).ok()?);
    if map.values.is_empty() || map.values.len() != map.width.checked_mul(map.height)? {
        return None;
    }
    let span = (high - low).max(f32::MIN_POSITIVE);
    let pixels: Vec<u8> = map.values.iter().map(|v| ((v - low) / span * 255.0).round() as u8).collect();
    let mut bytes = vec![];
    PngEncoder::new(&mut bytes).write_image(&pixels, width, height, ExtendedColorType::L8).ok()?;
    Some(Thumbnail { width, height, mime: "image/png", bytes })
}

fn refuse_empty(picture: &RgbImage) -> Result<()> {
    match picture.is_empty() {
        true => Err(Error::Shape { op: "report::thumbnail", what: "the picture is empty".into() }),
        false => Ok(()),
    }
}

fn shrink(picture: &RgbImage) -> Cow<'_, RgbImage> {
    let (width, height) = picture.dimensions();
    let longest = width.max(height);
    if longest <= SIDE {
        return Cow::Borrowed(picture);
    }
    let to = |side: u32| (u64::from(side) * u64::from(SIDE) / u64::from(longest)).max(1) as u32;
    Cow::Owned(imageops::resize(picture, to(width), to(height), FilterType::Triangle))
}

/// 1 where any pixel of the mask falls, so that no defect is lost however small it becomes.
fn shrink_mask(mask: &[u8], [h, w]: [usize; 2], [out_h, out_w]: [usize; 2]) -> Result<Vec<f32>> {
    if mask.is_empty() || mask.len() != h * w {
        let what = format!("a mask of {} values is not {h}x{w}", mask.len());
        return Err(Error::Shape { op: "report::panels", what });
    }
    let span = |i: usize, from: usize, to: usize| (i * from / to)..((i + 1) * from).div_ceil(to);
    let any = |y: usize, x: usize| {
        span(y, h, out_h).any(|row| mask[row * w..][..w][span(x, w, out_w)].iter().any(|&pixel| pixel != 0))
    };
    Ok((0..out_h).flat_map(|y| (0..out_w).map(move |x| (y, x))).map(|(y, x)| f32::from(u8::from(any(y, x)))).collect())
}

fn jpeg(picture: &RgbImage) -> Result<Thumbnail> {
    let mut bytes = Cursor::new(vec![]);
    picture.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, QUALITY)).map_err(|refused| Error::Shape {
        op: "report::thumbnail",
        what: format!("a {}x{} picture: {refused}", picture.width(), picture.height()),
    })?;
    let (width, height) = picture.dimensions();
    Ok(Thumbnail { width, height, mime: "image/jpeg", bytes: bytes.into_inner() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    fn texture(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([(x % 200) as u8, (y % 200) as u8, 90]))
    }

    fn decoded(thumbnail: &Thumbnail) -> RgbImage {
        let picture = image::load_from_memory(&thumbnail.bytes).unwrap().to_rgb8();
        assert_eq!(picture.dimensions(), (thumbnail.width, thumbnail.height));
        picture
    }

    #[test]
    fn pictures_become_small_and_keep_their_shape() {
        for (size, expected) in
            [((900, 450), (320, 160)), ((320, 7), (320, 7)), ((2, 5000), (1, 320)), ((1, 1), (1, 1))]
        {
            let thumbnail = Thumbnail::photograph(&texture(size.0, size.1)).unwrap();
            assert_eq!(decoded(&thumbnail).dimensions(), expected);
        }
        assert!(matches!(Thumbnail::photograph(&RgbImage::new(0, 3)), Err(Error::Shape { .. })));
    }

    #[test]
    fn the_smallest_defect_stays_visible() {
        let mut mask = vec![0; 1000 * 1000];
        mask[503 * 1000 + 777] = 255;
        let small = shrink_mask(&mask, [1000, 1000], [320, 320]).unwrap();
        let marked: Vec<_> = (0..small.len()).filter(|&i| small[i] != 0.0).collect();
        // Row 503 of 1000 lies across two rows of 320.
        assert_eq!(marked, [160 * 320 + 248, 161 * 320 + 248]);
        // And a mask smaller than the picture is stretched.
        assert_eq!(shrink_mask(&[0, 1], [1, 2], [1, 4]).unwrap(), [0.0, 0.0, 1.0, 1.0]);
    }

    #[test]
    fn the_three_views_differ_where_they_should() {
        let picture = RgbImage::from_pixel(64, 64, Rgb([100; 3]));
        let scale = Scale::new(0.0, 1.0).unwrap();
        let mut map = vec![0.0; 16];
        map[15] = 2.0;
        let mask: Vec<u8> = (0..64 * 64).map(|i| u8::from(i % 64 < 32)).collect();
        let panels = panels(&picture, (&map, 4, 4), scale, 1.0, Some((&mask, 64, 64))).unwrap();
        let [original, overlay, outline] =
            [&panels.original, &panels.overlay, panels.outline.as_ref().unwrap()].map(decoded);
        // JPEG may be a little off.
        let far = |a: &RgbImage, x, y| a.get_pixel(x, y).0[0].abs_diff(original.get_pixel(x, y).0[0]) > 20;
        assert!(!far(&overlay, 3, 3) && far(&overlay, 60, 60));
        assert!(!far(&outline, 3, 3) && far(&outline, 31, 3) && far(&outline, 32, 60));
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let scale = Scale::new(0.0, 1.0).unwrap();
        let picture = texture(8, 8);
        assert!(matches!(panels(&picture, (&[0.0; 3], 2, 2), scale, 1.0, None), Err(Error::Shape { .. })));
        assert!(matches!(panels(&picture, (&[f32::NAN; 4], 2, 2), scale, 1.0, None), Err(Error::Data { .. })));
        let mask = Some((&[0_u8; 3][..], 2, 2));
        assert!(matches!(panels(&picture, (&[0.0; 4], 2, 2), scale, 1.0, mask), Err(Error::Shape { .. })));
        assert!(matches!(panels(&RgbImage::new(0, 0), (&[0.0; 4], 2, 2), scale, 1.0, None), Err(Error::Shape { .. })));
    }

    #[test]
    fn channels_are_grey_from_low_to_high() {
        let map = ChannelMap { channel: 3, height: 1, width: 3, values: vec![-1.0, 0.0, 3.0] };
        let picture = decoded(&grey(&map, [-1.0, 1.0]).unwrap());
        assert_eq!([0, 1, 2].map(|x| picture.get_pixel(x, 0).0[0]), [0, 128, 255]);
        assert_eq!(grey(&ChannelMap { width: 2, ..map }, [0.0, 1.0]), None);
    }
}
