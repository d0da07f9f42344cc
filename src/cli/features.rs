//! `grad features`: what `grad train` would compute first, so that it need not.

use std::time::Instant;

use serde_json::json;

use super::machine;
use super::pictures::Pictures;
use super::ui::{OutputArgs, Ui};
use crate::config::{Config, ExtractorArgs, MachineArgs, Settings, SourceArgs};
use crate::detector::open_backbone;
use crate::error::Result;

const MORE: &str = "\
Without --data, of the demo set. `grad train` and `grad eval` find them in the
cache, which may be removed at any time, if they run on the same device in the
same precision.

Example:
  grad features --data parts";

/// Compute the features of a folder of pictures ahead of training
#[derive(clap::Args)]
#[command(after_help = MORE)]
pub struct FeaturesArgs {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    extractor: ExtractorArgs,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: FeaturesArgs) -> Result<()> {
    let ui = Ui::new(args.output);
    let FeaturesArgs { source, extractor, machine, .. } = args;
    let config = Config::settle(Settings { machine, source, extractor, ..Default::default() })?;
    machine::on_device(&ui, &config, None, |device| {
        let pictures = Pictures::open(&ui, &config)?;
        let backbone = open_backbone(config.backbone, config.backbone_weights.as_deref())?.to(device)?;
        let started = Instant::now();
        let cached = pictures.features(&ui, &config, &backbone, None)?;
        let seconds = started.elapsed().as_secs_f64();
        let (total, computed) = (cached.items.len(), cached.features.computed());
        let rate = total as f64 / seconds;
        let [h, w, c] = cached.features.shape();
        let value = json!({
            "pictures": total,
            "computed": computed,
            "from_cache": total - computed,
            "seconds": seconds,
            "pictures_per_second": rate,
            "shape": [h, w, c],
            "backbone": config.backbone.name(),
            "backbone_digest": backbone.digest().to_string(),
            "cache": config.cache.to_string(),
        });
        let kept = total - computed;
        let text = format!(
            "pictures  {total}: {computed} computed, {kept} from the cache\ntime      {seconds:.1} s, {rate:.1} \
             pictures/s\nfeatures  {h}x{w}x{c} by {}\ncache     {}\n",
            backbone.name(),
            config.cache,
        );
        ui.result(&value, text)
    })
}
