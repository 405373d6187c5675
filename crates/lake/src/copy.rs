//! Data files on their way out to a folder and back in, each hashed as it goes.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    path::{Path as FilePath, PathBuf},
};

use futures::TryStreamExt;
use object_store::{ObjectStoreExt, path::Path};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::{
    Error, Result, Storage,
    storage::{blocking, make_dirs, sync_dir},
};

/// How much of a file travels at once, and how many such pieces may wait.
const PIECE_BYTES: usize = 1 << 20;
const PIECES_MAX: usize = 4;

/// A file that was copied: its size and its SHA-256 in hexadecimal digits.
pub type Copied = (u64, String);

enum Piece {
    Bytes(bytes::Bytes),
    End,
}

impl Storage {
    /// Copies a data file to a local path, durably; it has its name there once it is whole.
    pub async fn copy_out(&self, path: &str, to: &FilePath) -> Result<Copied> {
        let location = Path::parse(path).map_err(|e| Error::Corrupt { what: e.to_string() })?;
        let failed = |source| Error::Storage { doing: "read", path: path.to_owned(), source };
        let mut stream = self.files().get(&location).await.map_err(failed)?.into_stream();
        let (send, pieces) = mpsc::channel(PIECES_MAX);
        let target = to.to_path_buf();
        let writing = tokio::spawn(blocking(move || write_new(&target, pieces)));
        loop {
            match stream.try_next().await {
                Ok(Some(piece)) => {
                    if send.send(Piece::Bytes(piece)).await.is_err() {
                        break;
                    }
                }
                Ok(None) => {
                    let _ = send.send(Piece::End).await;
                    break;
                }
                // The writer sees that the end did not come, and removes what it has.
                Err(error) => return Err(failed(error)),
            }
        }
        let written = writing.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        written.map_err(|source| Error::Io { doing: "write", path: to.display().to_string(), source })
    }

    /// Copies a local file to a data path where there is none yet, durably.
    pub async fn copy_in(&self, path: &str, from: &FilePath) -> Result<Copied> {
        let (send, mut pieces) = mpsc::channel::<Vec<u8>>(PIECES_MAX);
        let source = from.to_path_buf();
        let reading = tokio::spawn(blocking(move || read_all(&source, &send)));
        let mut file = self.create(path)?;
        let mut hash = Sha256::new();
        while let Some(piece) = pieces.recv().await {
            hash.update(&piece);
            file.write(piece).await?;
        }
        let read = reading.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        read.map_err(|source| Error::Io { doing: "read", path: from.display().to_string(), source })?;
        Ok((file.finish(Vec::new()).await?, hex(&hash.finalize())))
    }
}

fn write_new(to: &FilePath, mut pieces: mpsc::Receiver<Piece>) -> std::io::Result<Copied> {
    let folder = to.parent().map(FilePath::to_path_buf).unwrap_or_default();
    make_dirs(&folder)?;
    // Two backups may copy the same file at once.
    let partial: PathBuf = folder.join(format!(".{}.part", Uuid::new_v4()));
    let written = write_pieces(&partial, &mut pieces).and_then(|copied| {
        fs::rename(&partial, to)?;
        sync_dir(&folder)?;
        Ok(copied)
    });
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

fn write_pieces(partial: &FilePath, pieces: &mut mpsc::Receiver<Piece>) -> std::io::Result<Copied> {
    let mut file = File::options().write(true).create_new(true).open(partial)?;
    let (mut bytes, mut hash) = (0, Sha256::new());
    loop {
        match pieces.blocking_recv() {
            Some(Piece::Bytes(piece)) => {
                hash.update(&piece);
                file.write_all(&piece)?;
                bytes += piece.len() as u64;
            }
            Some(Piece::End) => break,
            None => return Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    }
    file.sync_all()?;
    Ok((bytes, hex(&hash.finalize())))
}

fn read_all(from: &FilePath, to: &mpsc::Sender<Vec<u8>>) -> std::io::Result<()> {
    let mut file = File::open(from)?;
    loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
        if piece.is_empty() || to.blocking_send(piece).is_err() {
            return Ok(());
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
