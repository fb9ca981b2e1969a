//! From the model flags to a loaded model, which is downloaded first where it has to be.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mlx_genkit::{
    ComputeDtype, Model,
    mlx_models::{Decoder, use_device},
};
use mlx_rs::DeviceType;
use mlxgk_model_hub::Hub;
use tempfile::TempDir;

use crate::{
    failure::{Failure, Result},
    files::named,
    flags::{DeviceArg, DtypeArg, ModelArgs},
    progress::{DownloadBars, Spinner},
    terminal,
};

/// Sets the device, loads the model and says how long that took.
pub(crate) fn load(args: &ModelArgs) -> Result<(Model, Duration)> {
    let begun = Instant::now();
    set_device(args.device)?;
    let dtype = dtype(args);
    let model = match &args.model {
        Some(name) => {
            let folder = find(name, args.offline)?;
            let _spinner = Spinner::new(format!("loading {name}"));
            Model::load(folder, dtype)?
        }
        None => Model::bundled(dtype)?,
    };
    Ok((with_parts(model, args)?, begun.elapsed()))
}

/// The model with the tokenizer and the adapter that the flags name.
fn with_parts(model: Model, args: &ModelArgs) -> Result<Model> {
    let mut model = match &args.tokenizer {
        Some(folder) => named(model.with_tokenizer(folder))?,
        None => model,
    };
    for folder in &args.adapter {
        named(model.add_adapter(folder))?;
    }
    Ok(model)
}

/// A model to ask about and not to run: its weights stay in their files as far as they can.
pub(crate) fn outline(args: &ModelArgs) -> Result<Model> {
    set_device(args.device)?;
    let model = match &args.model {
        Some(name) => Model::load_lazily(find(name, args.offline)?, dtype(args))?,
        None => Model::bundled(dtype(args))?,
    };
    with_parts(model, args)
}

/// Refuses a folder whose tensors are not those that its config asks for, by name and shape: those that
/// loading it would ask for. The weights stay in their files.
pub(crate) fn check(folder: &Path, device: Option<DeviceArg>) -> Result<()> {
    set_device(device)?;
    let decoder = Decoder::load_lazily(folder, ComputeDtype::Auto);
    decoder.map_err(mlx_genkit::Error::from)?;
    Ok(())
}

/// A model's files: the folder that the flags name, or the model inside the binary written out for as long
/// as this lives.
pub(crate) enum Folder {
    Named(PathBuf),
    Bundled(TempDir),
}

impl Folder {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Named(path) => path,
            Self::Bundled(folder) => folder.path(),
        }
    }
}

/// The files of the model that the flags name.
pub(crate) fn folder(args: &ModelArgs) -> Result<Folder> {
    if let Some(name) = &args.model {
        return Ok(Folder::Named(find(name, args.offline)?));
    }
    let folder = TempDir::new()
        .map_err(|e| Failure::other(format_args!("cannot make a temporary folder: {e}")))?;
    Model::write_bundled(folder.path())?;
    Ok(Folder::Bundled(folder))
}

/// Loads a second model, to run where and as precisely as the first.
pub(crate) fn load_beside(name: &str, args: &ModelArgs) -> Result<Model> {
    let folder = find(name, args.offline)?;
    let _spinner = Spinner::new(format!("loading {name}"));
    Ok(Model::load(folder, dtype(args))?)
}

/// As [`outline`], a second model.
pub(crate) fn outline_beside(name: &str, args: &ModelArgs) -> Result<Model> {
    Ok(Model::load_lazily(find(name, args.offline)?, dtype(args))?)
}

/// The hub that the environment names, without the network where the flags or the environment say so.
pub(crate) fn hub(offline: bool) -> Result<Hub> {
    let hub = Hub::builder()?;
    Ok(if offline { hub.offline(true) } else { hub }.build())
}

/// The folder of a model on disk; a model that is not there is downloaded, with bars.
pub(crate) fn find(name: &str, offline: bool) -> Result<PathBuf> {
    let found = hub(offline)?.find(name, &mut DownloadBars::default())?;
    if let (Some(id), Some(commit)) = (&found.id, &found.commit) {
        terminal::note(&format!("{} at commit {commit}", id.repo()));
    }
    Ok(found.folder)
}

fn dtype(args: &ModelArgs) -> ComputeDtype {
    match args.dtype {
        DtypeArg::Auto => ComputeDtype::Auto,
        DtypeArg::Float32 => ComputeDtype::Float32,
        DtypeArg::Bfloat16 => ComputeDtype::Bfloat16,
        DtypeArg::Float16 => ComputeDtype::Float16,
    }
}

fn set_device(wanted: Option<DeviceArg>) -> Result<()> {
    let wanted = wanted.map(|it| match it {
        DeviceArg::Cpu => DeviceType::Cpu,
        DeviceArg::Gpu => DeviceType::Gpu,
    });
    match use_device(wanted).map_err(mlx_genkit::Error::from)? {
        true => Ok(()),
        false => Err(Failure::usage("--device gpu: MLX has no GPU here; leave the flag out")),
    }
}
