//! What stands around an overlay: the legend that says what its colours mean, and panels side by side.

use super::{INK, Scale, WHITE, fill, text};
use crate::{Error, Result};
use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use std::borrow::Cow;

const FRAME: Rgb<u8> = Rgb([150; 3]);

/// The strip below an overlay: the colour bar from low to high, both numbers, the picture's own score.
#[derive(Debug, Clone, Copy)]
pub struct Legend<'a> {
    /// The scale the overlay was painted with.
    pub scale: Scale,
    /// Score of the picture, marked on the bar (at its end if beyond) and printed.
    pub score: Option<f32>,
    /// Which map is shown, for example `smoothed map`.
    pub note: &'a str,
}

impl Legend<'_> {
    /// The picture with the legend below it, on a wider sheet where the numbers need it.
    pub fn below(&self, picture: &RgbImage) -> RgbImage {
        let (low, high) = (number(self.scale.low()), number(self.scale.high()));
        let score = self.score.map(|score| format!("score {}", number(score)));
        let middle = score.into_iter().chain((!self.note.is_empty()).then(|| self.note.to_string()));
        let middle = middle.collect::<Vec<_>>().join("  ");
        let columns = [&low, &middle, &high].map(|text| text::width(text, 1));
        // The middle is centred, so both sides must leave room for the wider end.
        let needed = columns[1] + 2 * columns[0].max(columns[2]) + 2 * 8;

        let dot = (picture.width() / 300).max(1);
        let pad = 4 * dot;
        let width = picture.width().max(needed * dot + 2 * pad);
        let (bar, numbers) = (picture.height() + 2 * pad, picture.height() + 5 * pad + dot);
        let mut sheet = RgbImage::from_pixel(width, numbers + text::HEIGHT * dot + pad, WHITE);
        imageops::replace(&mut sheet, picture, i64::from((width - picture.width()) / 2), 0);

        let span = width - 2 * pad;
        fill(&mut sheet, [pad, bar, span, 2 * pad], FRAME);
        for x in dot..span - dot {
            let t = (x - dot) as f32 / (span - 2 * dot) as f32;
            fill(&mut sheet, [pad + x, bar + dot, 1, 2 * pad - 2 * dot], Scale::paint(WHITE, t));
        }
        if let Some(score) = self.score.filter(|score| score.is_finite()) {
            let x = pad + (self.scale.position(score) * (span - dot) as f32).round() as u32;
            fill(&mut sheet, [x, bar - pad / 2, dot, 3 * pad], INK);
            // A small triangle that stands on the mark.
            for row in 0..3 {
                fill(
                    &mut sheet,
                    [x.saturating_sub((2 - row) * dot), bar - pad + row * dot, (5 - 2 * row) * dot, dot],
                    INK,
                );
            }
        }
        text::draw(&mut sheet, &low, pad, numbers, dot, INK);
        text::draw(&mut sheet, &middle, (width - columns[1] * dot) / 2, numbers, dot, INK);
        text::draw(&mut sheet, &high, width - pad - columns[2] * dot, numbers, dot, INK);
        sheet
    }
}

/// Three or four digits, however large or small.
fn number(x: f32) -> String {
    match x.abs() {
        0.0 => "0".into(),
        small if small < 1e-3 => format!("{x:.2e}"),
        small if small < 1.0 => format!("{x:.3}"),
        middle if middle < 99.5 => format!("{x:.2}"),
        large if large < 99_999.5 => format!("{x:.0}"),
        _ => format!("{x:.2e}"),
    }
}

/// A mask `[h, w]` as a picture: white where it is not 0.
///
/// Errors: [`Error::Shape`] if it is not `h * w` long.
pub fn mask_panel(mask: &[u8], h: usize, w: usize) -> Result<RgbImage> {
    if mask.len() != h * w {
        let what = format!("a mask of {} values is not {h}x{w}", mask.len());
        return Err(Error::Shape { op: "heatmap::mask_panel", what });
    }
    Ok(RgbImage::from_fn(
        w as u32,
        h as u32,
        |x, y| {
            if mask[y as usize * w + x as usize] == 0 { Rgb([0; 3]) } else { WHITE }
        },
    ))
}

/// Rows of panels under column titles, for example `picture | mask | overlay`. Cells have the size of the
/// first panel; others are scaled to fit, undistorted.
///
/// Errors: [`Error::Shape`] if there is no panel, an empty panel, or a row without one panel per title.
pub fn figure(titles: &[&str], rows: &[Vec<RgbImage>]) -> Result<RgbImage> {
    let refuse = |what: String| Err(Error::Shape { op: "heatmap::figure", what });
    let Some(first) = rows.first().and_then(|row| row.first()) else {
        return refuse("there is no panel".into());
    };
    if let Some(row) = rows.iter().find(|row| row.len() != titles.len()) {
        return refuse(format!("{} panels under {} titles", row.len(), titles.len()));
    }
    if rows.iter().flatten().any(|panel| panel.width() == 0 || panel.height() == 0) {
        return refuse("a panel is empty".into());
    }
    let (width, height) = first.dimensions();
    let dot = (width / 130).max(1);
    let gap = 4 * dot;
    let top = text::HEIGHT * dot + 2 * gap;
    let (columns, lines) = (titles.len() as u32, rows.len() as u32);
    let mut sheet = RgbImage::from_pixel(gap + columns * (width + gap), top + lines * (height + gap), WHITE);
    for (column, title) in (0..).zip(titles) {
        let x = gap + column * (width + gap) + width.saturating_sub(text::width(title, dot)) / 2;
        text::draw(&mut sheet, title, x, gap, dot, INK);
    }
    for (line, row) in (0..).zip(rows) {
        for (column, panel) in (0..).zip(row) {
            let (x, y) = (gap + column * (width + gap), top + line * (height + gap));
            let panel = fit(panel, width, height);
            let (x, y) = (x + (width - panel.width()) / 2, y + (height - panel.height()) / 2);
            imageops::replace(&mut sheet, &*panel, i64::from(x), i64::from(y));
        }
    }
    Ok(sheet)
}

/// The panel as large as fits into `width` x `height` without distortion.
fn fit(panel: &RgbImage, width: u32, height: u32) -> Cow<'_, RgbImage> {
    if panel.dimensions() == (width, height) {
        return Cow::Borrowed(panel);
    }
    let [w, h, panel_w, panel_h] = [width, height, panel.width(), panel.height()].map(u64::from);
    // The tighter side decides; at least one pixel remains of the other.
    let (w, h) = if w * panel_h <= h * panel_w {
        (w, (w * panel_h / panel_w).max(1))
    } else {
        ((h * panel_w / panel_h).max(1), h)
    };
    Cow::Owned(imageops::resize(panel, w as u32, h as u32, FilterType::Triangle))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture without white, so that the sheet around it can be told apart.
    fn texture(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([(x * 7 % 200) as u8, (y * 5 % 200) as u8, (x * y % 200) as u8]))
    }

    fn legend<'a>(score: Option<f32>, note: &'a str) -> Legend<'a> {
        Legend { scale: Scale::new(0.5, 2.0).unwrap(), score, note }
    }

    #[test]
    fn the_legend_leaves_the_picture_alone() {
        for (width, height) in [(1, 1), (40, 30), (301, 99), (900, 20)] {
            let picture = texture(width, height);
            let sheet = legend(Some(1.5), "smoothed map").below(&picture);
            let left = (sheet.width() - width) / 2;
            assert!(sheet.height() > height);
            assert_eq!(imageops::crop_imm(&sheet, left, 0, width, height).to_image(), picture);
        }
    }

    #[test]
    fn the_mark_moves_with_the_score() {
        let picture = texture(400, 10);
        // Leftmost dark pixel just above the bar.
        let mark = |score| {
            let sheet = legend(Some(score), "").below(&picture);
            (0..sheet.width()).find(|&x| *sheet.get_pixel(x, 10 + 8 - 1) == INK)
        };
        let [low, middle, high] = [0.5, 1.25, 2.0].map(|score| mark(score).unwrap());
        assert!(low < middle && middle < high && (low + high).abs_diff(2 * middle) <= 1, "{low} {middle} {high}");
        assert_eq!((mark(-7.0), mark(1e9)), (Some(low), Some(high)));
        assert_eq!(mark(f32::NAN), None);
    }

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (0.4567, "0.457"),
            (-0.5, "-0.500"),
            (13.62, "13.62"),
            (99.7, "100"),
            (54_321.4, "54321"),
            (1.234e-5, "1.23e-5"),
            (4.5e20, "4.50e20"),
            (f32::NAN, "NaN"),
        ];
        for (x, expected) in cases {
            assert_eq!(number(x), expected);
        }
    }

    #[test]
    fn panels_keep_their_shape() {
        let rows = [vec![texture(60, 40), texture(20, 80)], vec![texture(600, 40), texture(60, 40)]];
        let sheet = figure(&["picture", "overlay"], &rows).unwrap();
        let top = text::HEIGHT + 8;
        assert_eq!(sheet.dimensions(), (3 * 4 + 2 * 60, top + 2 * (40 + 4)));
        assert_eq!(imageops::crop_imm(&sheet, 4, top, 60, 40).to_image(), rows[0][0]);
        assert_eq!(fit(&rows[0][1], 60, 40).dimensions(), (10, 40));
        assert_eq!(fit(&rows[1][0], 60, 40).dimensions(), (60, 4));
        assert_eq!(fit(&texture(5000, 1), 60, 40).dimensions(), (60, 1));
    }

    #[test]
    fn refuses_what_is_no_figure() {
        for rows in [vec![], vec![vec![]], vec![vec![texture(2, 2)]], vec![vec![texture(2, 2), texture(0, 3)]]] {
            assert!(matches!(figure(&["a", "b"], &rows), Err(Error::Shape { .. })));
        }
        assert!(matches!(mask_panel(&[0, 1, 2], 2, 2), Err(Error::Shape { .. })));
        let panel = mask_panel(&[0, 1, 255, 0], 2, 2).unwrap();
        assert_eq!(panel.pixels().map(|p| p.0[1]).collect::<Vec<_>>(), [0, 255, 255, 0]);
    }
}
