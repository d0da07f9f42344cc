//! The names that published files give the tensors of an EfficientNet, and which of them is the network computed here.
//!
//! | names | stem | a block | accepted |
//! |---|---|---|---|
//! | `lukemelas/EfficientNet-PyTorch` | `_conv_stem` | `_blocks.N._depthwise_conv` | yes: our own |
//! | timm, `tf_efficientnet_*` | `conv_stem` | `blocks.S.B.conv_dw` | yes: TensorFlow's weights too |
//! | timm, `efficientnet_*` | the same | the same | no: trained with other zero padding and another BatchNorm ε |
//! | torchvision | `features.0.0` | `features.S.B.block.I.0` | no: those weights, ported |
//!
//! TensorFlow's weights were trained with "SAME" padding (at stride 2 the odd zero comes after) and ε = 1e-3. timm's own
//! and torchvision's B4 were trained with symmetric padding and ε = 1e-5: their kernels sit half a step off and every
//! BatchNorm scales differently, so the features would be wrong without any error. timm's two kinds have equal names and
//! shapes; only the name of the file can tell, and where it does not, that is said.
//! Source: `torchvision/models/efficientnet.py`, `timm/models/efficientnet.py`, as facts.

use std::path::Path;

use super::source::Source;

/// Whose names a file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// Those of `lukemelas/EfficientNet-PyTorch`, which are ours.
    Lukemelas,
    /// Those of timm.
    Timm,
}

/// The names of a file, with what stands before each of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Names {
    /// Whose they are.
    pub naming: Naming,
    /// `module.backbone.`, `encoder.`, …; often nothing.
    pub prefix: String,
}

/// A block's place: its number, its stage and number therein, and whether it expands.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub index: usize,
    pub stage: usize,
    pub repeat: usize,
    pub expands: bool,
}

impl Naming {
    /// For messages.
    pub fn describe(self) -> &'static str {
        match self {
            Naming::Lukemelas => "lukemelas/EfficientNet-PyTorch",
            Naming::Timm => "timm",
        }
    }
}

impl Names {
    /// Finds out whose names a file has, by its stem.
    ///
    /// # Errors
    /// What is wrong: no such network, several, or one that is not what is computed here.
    pub fn detect(source: &Source) -> Result<Self, String> {
        let stems = [(Naming::Lukemelas, "_conv_stem.weight"), (Naming::Timm, "conv_stem.weight")];
        let mut found = vec![];
        for entry in source.entries().iter().filter(|entry| entry.shape.len() == 4) {
            for (naming, stem) in stems {
                let prefix = entry.name.strip_suffix(stem).filter(|p| p.is_empty() || p.ends_with('.'));
                found.extend(prefix.map(|prefix| Names { naming, prefix: prefix.into() }));
            }
        }
        if found.len() > 1 {
            let prefixes: Vec<_> = found.iter().map(|names| format!("{:?}", names.prefix)).collect();
            return Err(format!("holds {} networks, below {}: keep one of them", found.len(), prefixes.join(", ")));
        }
        let ends = |stem: &str| source.entries().iter().any(|entry| entry.name.ends_with(stem));
        found.pop().ok_or_else(|| {
            if ends("features.0.0.weight") && ends("features.1.0.block.0.0.weight") {
                "has torchvision's names, whose weights were trained with symmetric zero padding and a BatchNorm ε of \
                 1e-5: the same layers, but not the network that is computed here"
                    .into()
            } else {
                "holds no EfficientNet under a name that is known here: neither \"_conv_stem.weight\" nor \
                 \"conv_stem.weight\""
                    .into()
            }
        })
    }

    /// What this file calls the part of a block: `_depthwise_conv.weight`, for example.
    pub(super) fn of_block(&self, place: Place, part: &str) -> String {
        let Place { index, stage, repeat, expands } = place;
        match self.naming {
            Naming::Lukemelas => format!("{}_blocks.{index}.{part}", self.prefix),
            Naming::Timm => {
                let (layer, tail) = part.split_once('.').unwrap_or((part, ""));
                let layer = match (layer, expands) {
                    ("_expand_conv", _) => "conv_pw",
                    ("_bn0", _) => "bn1",
                    ("_depthwise_conv", _) => "conv_dw",
                    ("_bn1", true) => "bn2",
                    ("_bn1", false) => "bn1",
                    ("_se_reduce", _) => "se.conv_reduce",
                    ("_se_expand", _) => "se.conv_expand",
                    ("_project_conv", true) => "conv_pwl",
                    ("_project_conv", false) => "conv_pw",
                    ("_bn2", true) => "bn3",
                    ("_bn2", false) => "bn2",
                    (other, _) => other,
                };
                format!("{}blocks.{stage}.{repeat}.{layer}.{tail}", self.prefix)
            }
        }
    }

    /// What this file calls the part of the stem: `_conv_stem.weight` or `_bn0.bias`, for example.
    pub(super) fn of_stem(&self, part: &str) -> String {
        match (self.naming, part.split_once('.')) {
            (Naming::Timm, Some(("_conv_stem", tail))) => format!("{}conv_stem.{tail}", self.prefix),
            (Naming::Timm, Some(("_bn0", tail))) => format!("{}bn1.{tail}", self.prefix),
            _ => format!("{}{part}", self.prefix),
        }
    }

    /// What the name of the file says about which of timm's two kinds it is.
    ///
    /// # Errors
    /// That it is the other kind, or wants pictures prepared in another way.
    pub(super) fn check_file_name(&self, path: &Path) -> Result<Option<String>, String> {
        if self.naming != Naming::Timm {
            return Ok(None);
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase().replace('-', "_");
        let Some(at) = name.find("efficientnet_") else {
            return Ok(Some(
                "its names are timm's, of tf_efficientnet and of efficientnet alike; only the former is the network \
                 that is computed here, so make sure that it is one"
                    .into(),
            ));
        };
        if !name[..at].ends_with("tf_") {
            return Err(
                "is timm's own training of the network, with symmetric zero padding and a BatchNorm ε of 1e-5: \
                        not the network that is computed here"
                    .into(),
            );
        }
        if name.contains("_ap_") || name.contains("_ap.") || name.contains(".ap_") {
            return Err("is AdvProp's training, which wants pictures prepared in another way".into());
        }
        Ok(None)
    }
}

/// What to say when the digits that a published file carries in its name do not begin its SHA-256: those of
/// `efficientnet-b4-6ed6700e.pth` do (the convention of torch.hub).
pub(super) fn check_digits(path: &Path, bytes: &[u8]) -> Option<String> {
    use sha2::{Digest, Sha256};
    let name = path.file_name()?.to_str()?;
    let stem = [".pth", ".pt", ".pth.tar"].iter().find_map(|ending| name.strip_suffix(ending))?;
    let digits = stem.rsplit_once('-')?.1;
    if digits.len() != 8 || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let found: String = Sha256::digest(bytes).iter().take(4).map(|b| format!("{b:02x}")).collect();
    (found != digits).then(|| {
        format!(
            "{}: its SHA-256 begins with {found}, not with the {digits} of its name: it is another file, or damaged; get \
             it again if its features look wrong",
            path.display()
        )
    })
}
