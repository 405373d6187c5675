//! ORC files.

use std::io::{self, Read};

use arrow::{array::RecordBatchReader, datatypes::SchemaRef};
use bytes::Bytes;
use orc_rust::{
    ArrowReaderBuilder,
    compression::Decompressor,
    proto::{CompressionKind, Footer, PostScript, Type},
    reader::{ChunkReader, metadata::read_metadata},
    schema::TimestampPrecision,
};
use prost_of_orc::Message;

use super::{
    Batches, FileInput,
    guard::{Guarded, guarded},
};
use crate::error::{Error, Result};

/// The schema and the batches of an ORC file.
pub(super) fn open(input: &FileInput, name: &str, rows_max: usize) -> Result<(SchemaRef, Batches)> {
    fn build<R>(from: R, rows_max: usize, name: &str) -> Result<(SchemaRef, Batches)>
    where
        R: ChunkReader + Send + 'static,
    {
        let unfit = orc_error(name);
        let from = Within(from);
        guarded(|| check(&from)).map_err(&unfit)?;
        let reader = guarded(|| {
            let builder = ArrowReaderBuilder::try_new(from)?;
            // Microseconds: nanoseconds would end in the year 2262. The reader fails on times that are finer.
            let builder = builder.with_timestamp_precision(TimestampPrecision::Microsecond).with_batch_size(rows_max);
            Ok::<_, orc_rust::error::OrcError>(builder.build())
        });
        let reader = reader.map_err(&unfit)?;
        let schema = guarded(|| Ok::<_, String>(reader.schema())).map_err(&unfit)?;
        Ok((schema, Box::new(Guarded::new(reader, unfit))))
    }
    match input {
        FileInput::Path(path) => build(FileInput::file(path)?, rows_max, name),
        FileInput::Bytes { bytes, .. } => build(bytes.clone(), rows_max, name),
    }
}

const BEYOND: &str = "it points beyond its end";

/// A file of which nothing beyond its end is asked for. The library makes room for as many bytes as a damaged file names
/// before it reads them, and a process that asks for more memory than there is ends.
struct Within<R>(R);

impl<R: ChunkReader> ChunkReader for Within<R> {
    type T = R::T;

    fn len(&self) -> u64 {
        self.0.len()
    }

    fn get_read(&self, offset_from_start: u64) -> io::Result<Self::T> {
        self.0.get_read(offset_from_start)
    }

    fn get_bytes(&self, offset_from_start: u64, length: u64) -> io::Result<Bytes> {
        if offset_from_start.checked_add(length).is_none_or(|end| end > self.len()) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, BEYOND));
        }
        self.0.get_bytes(offset_from_start, length)
    }
}

/// The longest that a compressed piece may be once it is read: its header has 23 bits for its length.
const BLOCK_BYTES_MAX: u64 = 1 << 23;
/// How deep lists, maps and structs may be in each other.
const TYPE_DEPTH_MAX: usize = 100;
const STRUCT: i32 = orc_rust::proto::r#type::Kind::Struct as i32;

/// Looks at what the library takes on trust, and a damaged file would end the process with: how large pieces become, and
/// types that hold themselves.
fn check(file: &impl ChunkReader) -> Result<(), Box<dyn std::error::Error>> {
    let end = file.len().checked_sub(1).ok_or("it is empty")?;
    let postscript_bytes = u64::from(file.get_bytes(end, 1)?[0]);
    let footer_end = end.checked_sub(postscript_bytes).ok_or("it is cut off")?;
    let postscript = PostScript::decode(file.get_bytes(footer_end, postscript_bytes)?)?;
    if postscript.compression_block_size() > BLOCK_BYTES_MAX {
        return Err("its compressed pieces are longer than ORC allows".into());
    }
    let footer_start = footer_end.checked_sub(postscript.footer_length()).ok_or(BEYOND)?;
    let mut footer = Vec::new();
    let compression = read_metadata(&mut empty_like(&postscript))?.compression();
    Decompressor::new(file.get_bytes(footer_start, postscript.footer_length())?, compression, Vec::new())
        .read_to_end(&mut footer)?;
    Ok(check_types(&Footer::decode(footer.as_slice())?.types)?)
}

/// Types stand in the order of a walk through their tree, each after the one that holds it.
fn check_types(types: &[Type]) -> Result<(), String> {
    let mut depths: Vec<Option<usize>> = vec![None; types.len()];
    for (at, holder) in types.iter().enumerate() {
        let depth = depths[at].unwrap_or_default() + 1;
        for held in &holder.subtypes {
            match depths.get_mut(*held as usize) {
                Some(seen @ None) if *held as usize > at => *seen = Some(depth),
                _ => return Err("its types are no tree".to_owned()),
            }
        }
        if depth > TYPE_DEPTH_MAX {
            return Err(format!("its types are more than {TYPE_DEPTH_MAX} deep, which is not supported"));
        }
    }
    Ok(())
}

/// A file without columns that is compressed as another: the library tells how to read a footer with its footer only.
fn empty_like(postscript: &PostScript) -> Bytes {
    let footer =
        Footer { types: vec![Type { kind: Some(STRUCT), ..Type::default() }], ..Footer::default() }.encode_to_vec();
    let mut file = match postscript.compression() {
        CompressionKind::None => Vec::new(),
        // A piece that is not compressed: its length, and a bit that says so.
        _ => vec![(footer.len() as u8) << 1 | 1, 0, 0],
    };
    file.extend(&footer);
    let footer_length = Some(file.len() as u64);
    let end = PostScript { footer_length, metadata_length: Some(0), ..postscript.clone() }.encode_to_vec();
    file.extend(&end);
    file.push(end.len() as u8);
    file.into()
}

/// Tells what the ORC reader cannot do from what is wrong with the file.
fn orc_error(name: &str) -> impl Fn(String) -> Error + Send + use<> {
    let file = name.to_owned();
    move |reason| {
        let lower = reason.to_ascii_lowercase();
        if ["unsupported", "not supported", "overflow while decoding timestamp"].iter().any(|w| lower.contains(w)) {
            let hint = "write the table as Parquet with the tool that wrote it".to_owned();
            Error::FileUnsupported { file: file.clone(), reason, hint }
        } else {
            Error::FileCorrupt { file: file.clone(), format: "ORC", reason }
        }
    }
}
