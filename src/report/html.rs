//! The one way text enters a page, and how numbers are written.

use std::fmt::{self, Display, Formatter, Write};

/// Appends formatted text to a `String`, which cannot fail.
macro_rules! put {
    ($out:expr, $($arg:tt)*) => {{
        use std::fmt::Write as _;
        let _ = write!($out, $($arg)*);
    }};
}
pub(super) use put;

/// Text from outside, safe in an element and in a quoted attribute. Characters that would break the line or turn the
/// reading direction of what follows become visible signs.
pub(super) struct Escaped<'a>(&'a str);

/// Escapes `text`.
pub(super) fn esc(text: &str) -> Escaped<'_> {
    Escaped(text)
}

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\n' | '\r' => f.write_char('\u{23ce}')?,
                '\t' => f.write_char(' ')?,
                // Marks, embeddings, overrides and isolates of text direction; line and paragraph separators.
                '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                    f.write_char('\u{fffd}')?;
                }
                c if c.is_control() || ('\u{fdd0}'..='\u{fdef}').contains(&c) || u32::from(c) & 0xfffe == 0xfffe => {
                    f.write_char('\u{fffd}')?;
                }
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// At most `limit` characters, the middle left out: names differ at their ends.
pub(super) fn shorten(text: &str, limit: usize) -> String {
    let n = text.chars().count();
    if n <= limit {
        return text.into();
    }
    let (head, tail) = (limit / 2, limit.saturating_sub(limit / 2 + 1));
    text.chars().take(head).chain(['…']).chain(text.chars().skip(n - tail)).collect()
}

/// A name from outside, shortened to `limit` and isolated from the direction of the text around it; whole when pointed at.
pub(super) fn name(text: &str, limit: usize) -> String {
    let shown = shorten(text, limit);
    match shown == text {
        true => format!("<bdi>{}</bdi>", esc(text)),
        false => format!("<bdi title=\"{}\">{}</bdi>", esc(text), esc(&shown)),
    }
}

/// `1 picture`, `2 pictures`.
pub(super) fn count(n: usize, what: &str) -> String {
    format!("{}\u{a0}{what}{}", grouped(n as u64), if n == 1 { "" } else { "s" })
}

/// Digits in groups of three, thin spaces between.
pub(super) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) && digits.len() > 4 {
            out.push('\u{202f}');
        }
        out.push(c);
    }
    out
}

/// A fraction in per cent, two decimals, without the sign.
pub(super) fn percent(fraction: f64) -> String {
    if fraction.is_finite() { format!("{:.2}", 100.0 * fraction) } else { "–".into() }
}

/// Decimals that give the largest of `values` four digits.
pub(super) fn decimals(values: impl Iterator<Item = f64>) -> usize {
    let largest = values.filter(|x| x.is_finite()).fold(0.0, |a: f64, b| a.max(b.abs()));
    if largest <= 0.0 { 3 } else { (3.0 - largest.log10().floor()).clamp(0.0, 9.0) as usize }
}

/// A duration in milliseconds, three digits.
pub(super) fn milliseconds(ms: f64) -> String {
    match ms {
        ms if !ms.is_finite() => "–".into(),
        ms if ms < 10.0 => format!("{ms:.2}"),
        ms if ms < 100.0 => format!("{ms:.1}"),
        ms => format!("{ms:.0}"),
    }
}

/// Bytes as an address that holds them (RFC 2397, base64 of RFC 4648).
pub(super) fn data_uri(mime: &str, bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = format!("data:{mime};base64,");
    out.reserve(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().enumerate().fold(0_u32, |word, (i, &byte)| word | u32::from(byte) << (16 - 8 * i));
        for i in 0..4 {
            out.push(if i <= chunk.len() { DIGITS[(word >> (18 - 6 * i)) as usize & 63] as char } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_is_markup() {
        let cases = [
            ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
            ("\" onload='x' &amp;", "&quot; onload=&#39;x&#39; &amp;amp;"),
            ("a\nb\u{202e}c\0d\u{7f}", "a\u{23ce}b\u{fffd}c\u{fffd}d\u{fffd}"),
            ("größe 尺寸 حجم", "größe 尺寸 حجم"),
        ];
        for (text, expected) in cases {
            assert_eq!(esc(text).to_string(), expected);
        }
    }

    #[test]
    fn long_names_lose_their_middle() {
        assert_eq!(shorten("capsule", 7), "capsule");
        assert_eq!(shorten("metal_plate", 7), "met…ate");
        assert_eq!(shorten("尺寸尺寸寸", 3), "尺…寸");
        assert_eq!(shorten("ab", 1), "…");
        assert_eq!(name("a&b", 9), "<bdi>a&amp;b</bdi>");
        assert_eq!(name("<<<<>>>>", 3), "<bdi title=\"&lt;&lt;&lt;&lt;&gt;&gt;&gt;&gt;\">&lt;…&gt;</bdi>");
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(
            [1, 9999, 12_345, 1_234_567].map(grouped),
            ["1", "9999", "12\u{202f}345", "1\u{202f}234\u{202f}567"]
        );
        assert_eq!((percent(0.99125), percent(f64::NAN)), ("99.12".into(), "–".into()));
        assert_eq!([12.3, 0.5, 0.0123, 12_345.0].map(|x| decimals([x, 0.0, f64::NAN].into_iter())), [2, 4, 5, 0]);
        assert_eq!(decimals([].into_iter()), 3);
        assert_eq!([0.123, 12.34, 1234.5].map(milliseconds), ["0.12", "12.3", "1234"]);
        assert_eq!((count(1, "picture"), count(0, "picture")), ("1\u{a0}picture".into(), "0\u{a0}pictures".into()));
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        let words = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        for (n, expected) in words.into_iter().enumerate() {
            assert_eq!(data_uri("a/b", &b"foobar"[..n]), format!("data:a/b;base64,{expected}"));
        }
    }
}
