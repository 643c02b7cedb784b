//! Reads a GGUF file of a Llama: its metadata, and its tensors in f32.

use std::fs::File;
use std::io::{BufReader, Seek};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Tensor};

use crate::header;

/// An open GGUF file. All its tensors lie within the file.
pub struct Gguf {
    content: Content,
    file: BufReader<File>,
}

impl Gguf {
    /// Reads the header.
    ///
    /// # Errors
    /// A file that cannot be read, is not a GGUF, is truncated, or holds another architecture.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open model '{}'", path.display()))?;
        Self::read(file).with_context(|| format!("model '{}'", path.display()))
    }

    fn read(file: File) -> Result<Self> {
        let metadata = file.metadata().context("cannot be read")?;
        ensure!(metadata.is_file(), "is not a file");
        let mut file = BufReader::new(file);
        header::check(&mut file, metadata.len()).context("is not a valid GGUF file")?;
        file.rewind()?;
        let content = Content::read(&mut file).context("is not a valid GGUF file")?;
        let gguf = Self { content, file };
        let architecture = gguf.text("general.architecture")?;
        ensure!(architecture == "llama", "its architecture is '{architecture}': only 'llama' is supported");
        gguf.check_bounds(metadata.len())?;
        Ok(gguf)
    }

    /// Rejects tensors that reach beyond the end of the file, before memory is allocated for them.
    fn check_bounds(&self, file_bytes: u64) -> Result<()> {
        for (name, info) in &self.content.tensor_infos {
            let elements = info.shape.dims().iter().try_fold(1_u64, |n, &dim| n.checked_mul(dim as u64));
            let end = elements
                .map(|n| n.div_ceil(info.ggml_dtype.block_size() as u64))
                .and_then(|blocks| blocks.checked_mul(info.ggml_dtype.type_size() as u64))
                .and_then(|bytes| bytes.checked_add(info.offset)?.checked_add(self.content.tensor_data_offset));
            if end.is_none_or(|end| end > file_bytes) {
                bail!("is cut short: tensor '{name}' reaches beyond its {file_bytes} bytes");
            }
        }
        Ok(())
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    fn text(&self, key: &str) -> Result<&str> {
        match self.value(key) {
            Some(Value::String(text)) => Ok(text),
            _ => bail!("has no text '{key}'"),
        }
    }

    /// A count in the metadata, 1 to 2^20.
    ///
    /// # Errors
    /// A count that is absent or out of range.
    pub fn count(&self, key: &str) -> Result<usize> {
        self.count_or(key, None)
    }

    /// A count in the metadata, or `default` if it is absent.
    ///
    /// # Errors
    /// A count that is out of range, or absent without a default.
    pub fn count_or(&self, key: &str, default: Option<usize>) -> Result<usize> {
        let n = match (self.value(key), default) {
            (Some(value), _) => value.to_u64().ok().and_then(|n| usize::try_from(n).ok()),
            (None, default) => default,
        };
        match n {
            Some(n) if (1..=1 << 20).contains(&n) => Ok(n),
            Some(n) => bail!("'{key}' is {n}: 1 to 2^20 is allowed"),
            None => bail!("has no count '{key}'"),
        }
    }

    /// A finite number above 0 in the metadata, or `default` if it is absent.
    ///
    /// # Errors
    /// A number that is out of range, or absent without a default.
    pub fn number(&self, key: &str, default: Option<f32>) -> Result<f32> {
        let x = match (self.value(key), default) {
            (Some(value), _) => value.to_f32().ok(),
            (None, default) => default,
        };
        match x {
            Some(x) if x.is_finite() && x > 0.0 => Ok(x),
            Some(x) => bail!("'{key}' is {x}: it must be above 0"),
            None => bail!("has no number '{key}'"),
        }
    }

    /// Whether the metadata has a value other than "none" for `key`.
    #[must_use]
    pub fn sets(&self, key: &str) -> bool {
        self.value(key).is_some_and(|value| !matches!(value, Value::String(text) if text == "none"))
    }

    /// The number of elements of an array in the metadata.
    #[must_use]
    pub fn array_len(&self, key: &str) -> Option<usize> {
        match self.value(key) {
            Some(Value::Array(values)) => Some(values.len()),
            _ => None,
        }
    }

    /// Whether there is a tensor of this name.
    #[must_use]
    pub fn has_tensor(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    /// A tensor in f32.
    ///
    /// # Errors
    /// A tensor that is absent or has another shape.
    pub fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let Some(info) = self.content.tensor_infos.get(name) else { bail!("has no tensor '{name}'") };
        let dims = info.shape.dims();
        ensure!(dims == shape, "tensor '{name}' is {dims:?}: it should be {shape:?}");
        let tensor = self.content.tensor(&mut self.file, name, &Device::Cpu);
        tensor.and_then(|t| t.dequantize(&Device::Cpu)).with_context(|| format!("tensor '{name}'"))
    }
}
