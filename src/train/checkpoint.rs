//! Checkpoints: all that a run needs to go on with the same bits.
//!
//! A checkpoint is a Hugging Face model folder, its weights as they are stored on the device, with more files: the optimizer's state (one a rank), the
//! resolved configuration, and a manifest with the size and BLAKE3 hash of every other file. It is written aside, flushed, read back and renamed. Any number of ranks goes on from it.

use super::engine::Engine;
use crate::comm::agree;
use crate::data::Dataset;
use crate::error::{Error, Kind, Result, io_error, write_error};
use crate::io::{Companions, DEFAULT_SHARD_BYTES, Export, FileRecord, NewFolder, TensorFiles, TensorSpec};
use crate::io::{free_space, read_along, remove_folder, stored_as, verify_files, write_model};
use crate::model::checkpoint_reader;
use crate::tensor::{ViewMut, format_bytes};
use crate::zero::Saved;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Begins the names of the files that hold the optimizer's state.
const OPTIMIZER: &str = "optimizer";
const CONFIG: &str = "config.toml";
const MANIFEST: &str = "manifest.json";
/// Of what a manifest says; another one is refused.
const FORMAT: u32 = 1;
/// A manifest names some dozens of files.
const MOST_MANIFEST_BYTES: u64 = 16 << 20;

/// Where a run stood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    /// The version of this program that wrote it.
    pub version: String,
    /// Steps done.
    pub step: usize,
    /// Updates done: steps without those that were skipped.
    pub updates: u64,
    /// [`digest`] of the training rows.
    pub data: String,
    /// The algorithms that a library chose for products, which decide their bits.
    pub products: Vec<serde_json::Value>,
    pub files: Vec<FileRecord>,
}

/// A manifest with the hash of its own text.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    run: Manifest,
    blake3: String,
}

impl Sealed {
    fn new(run: Manifest) -> Result<Sealed> {
        let text = serde_json::to_string(&run).map_err(|e| Error::internal(e.to_string()))?;
        Ok(Sealed { run, blake3: blake3::hash(text.as_bytes()).to_string() })
    }
}

/// A checkpoint on disk that was verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub path: PathBuf,
    pub manifest: Manifest,
}

impl Checkpoint {
    /// Reads the manifest of the folder `path` and verifies every file that it names; `progress` hears of each.
    ///
    /// Errors: checkpoint errors that name the file at fault.
    pub fn open(path: &Path, progress: &dyn Fn(&str)) -> Result<Checkpoint> {
        let manifest = read_manifest(path).and_then(|manifest| {
            verify_files(path, &manifest.files, progress)?;
            match [OPTIMIZER, CONFIG].iter().find(|name| manifest.files.iter().all(|file| !file.name.starts_with(**name))) {
                None => Ok(manifest),
                Some(missing) => Err(Error::data(format!("{}: its manifest names no {missing}", path.display()))),
            }
        });
        manifest.map(|manifest| Checkpoint { path: path.to_path_buf(), manifest }).map_err(at_checkpoint)
    }

    /// The optimizer's state, in the order of the ranks that wrote it.
    fn optimizer(&self) -> Result<Vec<TensorFiles>> {
        let mut names: Vec<&str> =
            self.manifest.files.iter().map(|file| file.name.as_str()).filter(|name| name.starts_with(OPTIMIZER)).collect();
        names.sort_unstable();
        names.iter().map(|name| TensorFiles::open_file(&self.path.join(name))).collect()
    }

    /// The resolved configuration of the run that wrote it.
    pub fn config(&self) -> Result<String> {
        let path = self.path.join(CONFIG);
        fs::read_to_string(&path).map_err(|e| at_checkpoint(io_error(&path, e)))
    }

    /// What the optimizer's state is stored in: "m f32", "v f32" and so on.
    pub fn optimizer_types(&self) -> Result<Vec<String>> {
        let mut types = BTreeSet::new();
        for saved in self.optimizer().map_err(at_checkpoint)? {
            for name in saved.names() {
                let kind = name.split('.').nth(1).unwrap_or(name);
                types.insert(format!("{kind} {}", saved.info(name)?.0));
            }
        }
        Ok(types.into_iter().collect())
    }

    /// Refuses, as a usage error, other training rows than those that the checkpoint was trained on.
    pub fn require_data(&self, data: &Dataset) -> Result<()> {
        match digest(data) == self.manifest.data {
            true => Ok(()),
            false => Err(Error::usage(format!(
                "data.train gives other tokens than those that {} was trained on",
                self.path.display()
            ))
            .help("the files, the tokenizer or the chat template changed: restore them, or start over with --overwrite")),
        }
    }

    /// Gives an engine of the same model and settings the state that was saved.
    pub fn load(&self, engine: &mut Engine) -> Result<()> {
        let Engine { ops, state, .. } = engine;
        let ops = ops.as_ref();
        let mut read = || -> Result<()> {
            ops.use_product_algorithms(&self.manifest.products)?;
            let weights = TensorFiles::open(&self.path)?;
            state.weights.load(ops, &mut *checkpoint_reader(&weights, &state.model.layout)?)?;
            let files = self.optimizer()?;
            let found: BTreeSet<&str> = files.iter().flat_map(TensorFiles::names).collect();
            let needed: BTreeSet<String> = state.saved().map(|saved| saved.name.to_string()).collect();
            if let Some(other) = found.iter().find(|name| !needed.contains(**name)) {
                return Err(Error::data(format!("{}: its optimizer has {other}, which this run has not", self.path.display())));
            }
            state.restore(&mut |saved, out| {
                restore(&files, &saved, out, &mut |bytes, out| ops.upload(bytes, out))
                    .map_err(|error| error.context(self.path.display()))
            })
        };
        read().map_err(at_checkpoint)?;
        state.optimizer.step = self.manifest.updates;
        Ok(())
    }
}

/// Writes the numbers that `saved` names to `out`, out of files that hold them one after another.
fn restore(
    files: &[TensorFiles],
    saved: &Saved,
    out: ViewMut,
    upload: &mut dyn FnMut(&[u8], ViewMut) -> Result<()>,
) -> Result<()> {
    let (name, mut begin, mut rest) = (saved.name, 0, Some(out));
    for file in files.iter().filter(|file| file.contains(name)) {
        let (dtype, shape) = file.info(name)?;
        let &[length] = shape else { return Err(Error::data(format!("tensor {name} has the shape {shape:?}"))) };
        if dtype != stored_as(saved.numbers.dtype()) {
            return Err(Error::data(format!("tensor {name} holds {dtype}, not {}", saved.numbers.dtype())));
        }
        let (from, to) = (saved.range.start.clamp(begin, begin + length), saved.range.end.clamp(begin, begin + length));
        if let Some(out) = rest.take_if(|_| from < to) {
            let (part, others) = out.split_rows(to - from);
            upload(file.bytes(name, from - begin..to - begin)?, part)?;
            rest = Some(others);
        }
        begin += length;
    }
    match begin == saved.whole {
        true => Ok(()),
        false => Err(Error::data(format!("tensor {name} has {begin} elements, not {}", saved.whole))),
    }
}

fn at_checkpoint(error: Error) -> Error {
    Error { kind: Kind::Checkpoint, help: None, ..error }.help(
        "`train` goes on from an older checkpoint by itself, --resume PATH from the one it names, --overwrite starts over",
    )
}

fn read_manifest(path: &Path) -> Result<Manifest> {
    let file = path.join(MANIFEST);
    let found = fs::metadata(&file).map_err(|e| io_error(&file, e))?;
    if !found.is_file() || found.len() > MOST_MANIFEST_BYTES {
        return Err(Error::data(format!("{}: not the manifest of a checkpoint", file.display())));
    }
    let text = fs::read(&file).map_err(|e| io_error(&file, e))?;
    #[derive(Deserialize)]
    struct Versioned {
        run: Format,
    }
    #[derive(Deserialize)]
    struct Format {
        format: u32,
        version: String,
    }
    let broken = |e: serde_json::Error| Error::data(format!("{}: {e}", file.display()));
    let Versioned { run: Format { format, version } } = serde_json::from_slice(&text).map_err(broken)?;
    if format != FORMAT {
        let what =
            format!("{}: format {format}, written by limo-engine {version}; this one reads format {FORMAT}", file.display());
        return Err(Error::data(what));
    }
    let Sealed { run, blake3 } = serde_json::from_slice(&text).map_err(broken)?;
    match Sealed::new(run)? {
        sealed if sealed.blake3 == blake3 => Ok(sealed.run),
        _ => Err(Error::data(format!("{} is damaged: its content is not what was written", file.display()))),
    }
}

/// A hash of the training rows as the model sees them: a run continues on the same data only.
pub fn digest(data: &Dataset) -> String {
    let mut hash = blake3::Hasher::new();
    for example in &data.examples {
        hash.update(&(example.tokens.len() as u64).to_le_bytes());
        hash.update(bytemuck::cast_slice(&example.tokens));
        hash.update(&example.supervised.iter().map(|&s| s.into()).collect::<Vec<u8>>());
    }
    hash.finalize().to_string()
}

/// The checkpoints of one run: `step-00000120` and so on in one folder.
pub struct Checkpoints {
    folder: PathBuf,
}

impl Checkpoints {
    pub fn new(folder: PathBuf) -> Self {
        Checkpoints { folder }
    }

    pub fn path(&self, step: usize) -> PathBuf {
        self.folder.join(format!("step-{step:08}"))
    }

    /// Steps of which there is a checkpoint, valid or not, in ascending order.
    pub fn steps(&self) -> Result<Vec<usize>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|e| io_error(&self.folder, e))?,
        };
        let mut steps = Vec::new();
        for entry in entries {
            let name = entry.map_err(|e| io_error(&self.folder, e))?.file_name();
            let step = name.to_str().and_then(|name| name.strip_prefix("step-")).and_then(|digits| digits.parse().ok());
            steps.extend(step.filter(|&step| self.path(step).file_name() == Some(&name)));
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// The newest checkpoint that is valid, and why each newer one is not.
    pub fn newest(&self, progress: &dyn Fn(&str)) -> Result<(Option<Checkpoint>, Vec<Error>)> {
        let mut invalid = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            match self.open(step, progress) {
                Ok(checkpoint) => return Ok((Some(checkpoint), invalid)),
                Err(error) => invalid.push(error),
            }
        }
        Ok((None, invalid))
    }

    /// The checkpoint of one step; errors as [`Checkpoint::open`].
    pub fn open(&self, step: usize, progress: &dyn Fn(&str)) -> Result<Checkpoint> {
        let checkpoint = Checkpoint::open(&self.path(step), progress)?;
        match checkpoint.manifest.step {
            found if found == step => Ok(checkpoint),
            found => Err(at_checkpoint(Error::data(format!("{} is of step {found}", checkpoint.path.display())))),
        }
    }

    /// Saves the state of `engine` after `step` steps. Then removes the oldest checkpoints up to this step but `keep`. All ranks call it; rank 0 writes what they have in common.
    ///
    /// Errors: checkpoint errors. No earlier checkpoint is touched before this one is on disk and was read back.
    pub fn save(&self, engine: &Engine, run: &SavedRun, step: usize, keep: usize) -> Result<PathBuf> {
        let (path, comm) = (self.path(step), engine.comm.as_ref());
        comm.note(&format!("saving step {step}"));
        agree(comm, if comm.rank() == 0 { self.require_room(engine, &path) } else { Ok(()) })?;
        self.write(engine, run, step, &path).map_err(|error| match error.kind {
            Kind::Usage | Kind::Data => {
                Error { kind: Kind::Checkpoint, ..error }.context(format!("the checkpoint of step {step} was not saved"))
            }
            _ => error,
        })?;
        agree(comm, if comm.rank() == 0 { self.rotate(step, keep) } else { Ok(()) })?;
        Ok(path)
    }

    fn require_room(&self, engine: &Engine, path: &Path) -> Result<()> {
        let needed = engine.checkpoint_bytes() as u64;
        let Some(free) = free_space(&self.folder).filter(|&free| free < needed) else { return Ok(()) };
        let [needed, free] = [needed, free].map(|bytes| format_bytes(bytes as usize));
        let what = format!("{}: a checkpoint needs {needed}, the disk has {free} left; nothing was written", path.display());
        Err(Error::new(Kind::Checkpoint, what)
            .help("make room, then run the command again: it goes on from the checkpoint before"))
    }

    fn write(&self, engine: &Engine, run: &SavedRun, step: usize, path: &Path) -> Result<()> {
        let Engine { ops, comm, state, .. } = engine;
        let (ops, comm) = (ops.as_ref(), comm.as_ref());
        let (rank, world) = (comm.rank(), comm.world());
        let created = if rank == 0 { NewFolder::create(path) } else { NewFolder::join(path) };
        agree(comm, created.as_ref().map(|_| ()).map_err(Error::clone))?;
        let mut folder = created?;
        let tensors = engine.model_tensors(ops.dtype());
        let export = Export { companions: run.companions, tensors: &tensors, shard_bytes: DEFAULT_SHARD_BYTES };
        let read = |name: &str, rows, out: &mut [f32]| state.weights.read_stored(ops, name, rows, out);
        if rank == 0 { write_model(&mut folder, &export, read) } else { read_along(&export, read) }?;
        let own = write_state(engine, &mut folder);
        agree(comm, own)?;
        let files = serde_json::to_vec(folder.files()).map_err(|e| Error::internal(e.to_string()))?;
        for files in comm.share(&files)?.iter().skip(1).take(if rank == 0 { world } else { 0 }) {
            folder.add(serde_json::from_slice(files).map_err(|e| Error::internal(e.to_string()))?);
        }
        agree(comm, if rank == 0 { self.seal(engine, run, step, folder) } else { Ok(()) })
    }

    /// Adds what makes a folder with weights and state a checkpoint, and puts it in its place.
    fn seal(&self, engine: &Engine, run: &SavedRun, step: usize, mut folder: NewFolder) -> Result<()> {
        let Engine { ops, state, .. } = engine;
        folder.write_bytes(CONFIG, run.config.as_bytes())?;
        let manifest = Manifest {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_string(),
            step,
            updates: state.optimizer.step,
            data: run.data.clone(),
            products: ops.product_algorithms(),
            files: folder.files().to_vec(),
        };
        let text = serde_json::to_string_pretty(&Sealed::new(manifest)?).map_err(|e| Error::internal(e.to_string()))?;
        folder.write_bytes(MANIFEST, format!("{text}\n").as_bytes())?;
        folder.finish(&|file| engine.comm.note(&format!("verifying {file}")))
    }

    fn rotate(&self, step: usize, keep: usize) -> Result<()> {
        let older: Vec<usize> = self.steps()?.into_iter().filter(|&s| s < step).collect();
        let kept = older.len().min(keep - 1);
        older[..older.len() - kept].iter().try_for_each(|&step| remove_folder(&self.path(step)))
    }

    /// Removes every checkpoint of a later step, and what interrupted writes left.
    pub fn keep_up_to(&self, step: usize) -> Result<()> {
        self.steps()?.into_iter().filter(|&s| s > step).try_for_each(|step| remove_folder(&self.path(step)))?;
        for entry in fs::read_dir(&self.folder).map_err(|e| io_error(&self.folder, e))? {
            let entry = entry.map_err(|e| io_error(&self.folder, e))?;
            if entry.file_name().to_string_lossy().starts_with(".step-") {
                fs::remove_dir_all(entry.path()).map_err(|e| write_error(entry.path(), e))?;
            }
        }
        Ok(())
    }
}

/// Writes this rank's part of the optimizer's state.
fn write_state(engine: &Engine, folder: &mut NewFolder) -> Result<()> {
    let (ops, world) = (engine.ops.as_ref(), engine.comm.world());
    // What is at home in host memory may still be under way.
    ops.synchronize()?;
    let saved: Vec<Saved> = engine.state.saved().filter(|saved| !saved.range.is_empty()).collect();
    let spec = |saved: &Saved| TensorSpec {
        name: saved.name.to_string(),
        dtype: saved.numbers.dtype(),
        shape: saved.numbers.shape().to_vec(),
    };
    let specs: Vec<TensorSpec> = saved.iter().map(spec).collect();
    let name = match world {
        1 => format!("{OPTIMIZER}.safetensors"),
        _ => format!("{OPTIMIZER}-{:05}-of-{world:05}.safetensors", engine.comm.rank() + 1),
    };
    folder.write_tensors(&name, &specs, |spec, range, bytes| {
        let saved = saved.iter().find(|saved| saved.name == spec.name).ok_or_else(|| Error::internal(&spec.name))?;
        ops.download(saved.numbers.rows(range), bytes)
    })
}

/// What a checkpoint holds besides the engine's state.
pub struct SavedRun<'a> {
    pub companions: &'a Companions,
    /// The text of the run folder's config.toml.
    pub config: String,
    /// [`digest`] of the training rows.
    pub data: String,
}
