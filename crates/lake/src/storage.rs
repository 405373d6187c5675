mod read_only;

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path as FilePath, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use datafusion::execution::{object_store::ObjectStoreUrl, runtime_env::RuntimeEnv};
use headworks_domain::Secret;
use object_store::{
    ObjectStore, ObjectStoreExt, PutMode, PutOptions, WriteMultipart, aws::AmazonS3Builder, local::LocalFileSystem,
    path::Path, prefix::PrefixStore,
};
use url::Url;
use uuid::Uuid;

use self::read_only::ReadOnly;
use crate::{Error, Result};

/// Where the lake's files are.
#[derive(Debug, Clone, Default)]
pub struct StorageOptions {
    /// A folder, or `s3://bucket/prefix`.
    pub path: String,
    /// S3: the server, when it is not Amazon's.
    pub endpoint: Option<String>,
    /// S3: the region.
    pub region: Option<String>,
    /// S3: the key's id; without it the environment's usual credentials serve.
    pub access_key_id: Option<String>,
    /// S3: the key.
    pub secret_access_key: Option<Secret>,
    /// S3: whether an endpoint without TLS will do.
    pub allow_http: bool,
}

/// The lake's files: everything below the data path, which holds published and staged data files and nothing else.
///
/// Local files are fsynced with their folders before a write returns; object stores are durable when they answer.
#[derive(Debug, Clone)]
pub struct Storage {
    /// As the catalog names it: an absolute folder or an `s3://` URL, ending in `/`.
    data_path: String,
    files: Arc<dyn ObjectStore>,
    /// The lake's root, for the few files that are not data.
    root: Arc<dyn ObjectStore>,
    local: Option<PathBuf>,
    is_read_only: bool,
}

/// Smaller S3 objects go in one request.
const PART_BYTES: usize = 16 << 20;

impl Storage {
    /// Opens the storage, making a local folder that is not there. Errors: `Place`, `Io`.
    pub fn open(options: &StorageOptions) -> Result<Self> {
        if options.path.starts_with("s3://") { Self::open_s3(options) } else { Self::open_local(&options.path) }
    }

    /// Opens the storage for reading only: what it gives out can neither write nor delete. `None` for a local folder that is not
    /// there. Errors: as [`open`](Self::open).
    pub fn open_read_only(options: &StorageOptions) -> Result<Option<Self>> {
        if !options.path.contains("://") && !FilePath::new(&options.path).join("data").is_dir() {
            return Ok(None);
        }
        let open = Self::open(options)?;
        let read_only = |store| Arc::new(ReadOnly(store)) as Arc<dyn ObjectStore>;
        Ok(Some(Self { files: read_only(open.files), root: read_only(open.root), is_read_only: true, ..open }))
    }

    fn open_local(path: &str) -> Result<Self> {
        if path.contains("://") {
            return Err(Error::Place { url: path.to_owned(), reason: "only folders and s3:// are known".to_owned() });
        }
        let data = FilePath::new(path).join("data");
        let io = |source| Error::Io { doing: "make folder", path: data.display().to_string(), source };
        if !data.is_dir() {
            make_dirs(&data).map_err(io)?;
        }
        let data = data.canonicalize().map_err(io)?;
        let root = data.parent().map(FilePath::to_path_buf).unwrap_or_else(|| data.clone());
        let open = |at: &FilePath| {
            LocalFileSystem::new_with_prefix(at)
                .map(|fs| Arc::new(fs) as Arc<dyn ObjectStore>)
                .map_err(|source| Error::Storage { doing: "open", path: at.display().to_string(), source })
        };
        let data_path = data
            .to_str()
            .map(|p| format!("{p}/"))
            .ok_or_else(|| Error::Place { url: path.to_owned(), reason: "its name is not Unicode".to_owned() })?;
        Ok(Self { data_path, files: open(&data)?, root: open(&root)?, local: Some(data), is_read_only: false })
    }

    fn open_s3(options: &StorageOptions) -> Result<Self> {
        let place = |reason: String| Error::Place { url: options.path.clone(), reason };
        let url = Url::parse(&options.path).map_err(|e| place(e.to_string()))?;
        let bucket = url.host_str().ok_or_else(|| place("it names no bucket".to_owned()))?;
        let mut s3 = AmazonS3Builder::from_env().with_bucket_name(bucket).with_allow_http(options.allow_http);
        if let Some(endpoint) = &options.endpoint {
            s3 = s3.with_endpoint(endpoint);
        }
        if let Some(region) = &options.region {
            s3 = s3.with_region(region);
        }
        if let (Some(id), Some(key)) = (&options.access_key_id, &options.secret_access_key) {
            s3 = s3.with_access_key_id(id).with_secret_access_key(key.expose());
        }
        let s3: Arc<dyn ObjectStore> = Arc::new(s3.build().map_err(|e| place(e.to_string()))?);
        let prefix = Path::from_url_path(url.path()).map_err(|e| place(e.to_string()))?;
        let data = prefix.clone().join("data");
        let data_path = format!("s3://{bucket}/{data}/");
        Ok(Self {
            data_path,
            files: Arc::new(PrefixStore::new(Arc::clone(&s3), data)),
            root: Arc::new(PrefixStore::new(s3, prefix)),
            local: None,
            is_read_only: false,
        })
    }

    /// True when it was opened for reading only.
    pub fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// The data path as the catalog names it, ending in `/`.
    pub fn data_path(&self) -> &str {
        &self.data_path
    }

    /// The data files, rooted at the data path.
    pub fn files(&self) -> &Arc<dyn ObjectStore> {
        &self.files
    }

    /// The lake's root, one level above the data path.
    pub fn root(&self) -> &Arc<dyn ObjectStore> {
        &self.root
    }

    /// The local data folder, when the lake is one.
    pub fn local(&self) -> Option<&FilePath> {
        self.local.as_deref()
    }

    /// The URL under which query sessions find the data files: `lake://data`, or `lake://read-only`, so that one session may
    /// read a lake of its own and another.
    pub fn url(&self) -> ObjectStoreUrl {
        let url = if self.is_read_only { "lake://read-only" } else { "lake://data" };
        ObjectStoreUrl::parse(url).expect("the URL is a constant")
    }

    /// Lets a query session read the data files.
    pub fn register(&self, runtime: &RuntimeEnv) {
        runtime.register_object_store(self.url().as_ref(), Arc::clone(&self.files));
    }

    /// Writes a small file into the lake's root, over the one of that name, durably.
    pub(crate) async fn write_root(&self, name: &'static str, bytes: Vec<u8>) -> Result<()> {
        if self.is_read_only {
            return Err(Error::ReadOnly { path: name.to_owned() });
        }
        let Some(root) = self.local.as_deref().and_then(FilePath::parent).map(FilePath::to_path_buf) else {
            let put = self.root.put(&Path::from(name), bytes.into()).await;
            return put.map(drop).map_err(|source| Error::Storage { doing: "write", path: name.to_owned(), source });
        };
        let shown = root.join(name).display().to_string();
        blocking(move || {
            let partial = root.join(format!(".{name}.{}", Uuid::new_v4()));
            let written = File::create(&partial).and_then(|mut file| {
                file.write_all(&bytes)?;
                file.sync_all()?;
                fs::rename(&partial, root.join(name))?;
                sync_dir(&root)
            });
            if written.is_err() {
                let _ = fs::remove_file(&partial);
            }
            written
        })
        .await
        .map_err(|source| Error::Io { doing: "write", path: shown, source })
    }

    /// Begins a new data file; it exists once `finish` returns.
    pub(crate) fn create(&self, path: &str) -> Result<NewFile> {
        if self.is_read_only {
            return Err(Error::ReadOnly { path: format!("{}{path}", self.data_path) });
        }
        let location = Path::parse(path).map_err(|e| Error::Place { url: path.to_owned(), reason: e.to_string() })?;
        let to = match &self.local {
            Some(root) => To::Local(Some(LocalFile { path: root.join(path), root: root.clone(), file: None })),
            None => To::Remote { store: Arc::clone(&self.files), location, upload: None },
        };
        Ok(NewFile { name: path.to_owned(), to, size: 0 })
    }
}

/// A data file being written.
pub(crate) struct NewFile {
    name: String,
    to: To,
    size: u64,
}

enum To {
    /// None after a write that failed.
    Local(Option<LocalFile>),
    Remote {
        store: Arc<dyn ObjectStore>,
        location: Path,
        upload: Option<WriteMultipart>,
    },
}

impl NewFile {
    /// Hands on the next bytes; bounded work, for files larger than one row group.
    pub(crate) async fn write(&mut self, bytes: Vec<u8>) -> Result<()> {
        self.size += bytes.len() as u64;
        match &mut self.to {
            To::Local(local) => {
                let (shown, open) = LocalFile::taken(local, &self.name);
                let written = blocking(move || {
                    let mut open = open?;
                    open.append(&bytes)?;
                    Ok(open)
                });
                *local = Some(written.await.map_err(|source| Error::Io { doing: "write", path: shown, source })?);
                Ok(())
            }
            To::Remote { store, location, upload } => {
                if upload.is_none() {
                    let begun = store.put_multipart(location).await;
                    let begun =
                        begun.map_err(|source| Error::Storage { doing: "write", path: self.name.clone(), source })?;
                    *upload = Some(WriteMultipart::new_with_chunk_size(begun, PART_BYTES));
                }
                if let Some(upload) = upload {
                    // At most four parts on their way: memory stays bounded.
                    let waited = upload.wait_for_capacity(4).await;
                    waited.map_err(|source| Error::Storage { doing: "write", path: self.name.clone(), source })?;
                    upload.put(Bytes::from(bytes));
                }
                Ok(())
            }
        }
    }

    /// Writes the last bytes, makes everything durable and answers the file's size.
    pub(crate) async fn finish(mut self, rest: Vec<u8>) -> Result<u64> {
        self.size += rest.len() as u64;
        let name = self.name.clone();
        match self.to {
            To::Local(mut local) => {
                let (shown, open) = LocalFile::taken(&mut local, &name);
                blocking(move || {
                    let mut open = open?;
                    open.append(&rest)?;
                    open.finish()
                })
                .await
                .map_err(|source| Error::Io { doing: "write", path: shown, source })?;
            }
            To::Remote { upload: Some(mut upload), .. } => {
                upload.put(Bytes::from(rest));
                upload.finish().await.map_err(|source| Error::Storage { doing: "write", path: name, source })?;
            }
            To::Remote { store, location, upload: None } => {
                // The name is unique; `Create` makes sure that nothing is ever overwritten.
                let options = PutOptions { mode: PutMode::Create, ..Default::default() };
                store
                    .put_opts(&location, Bytes::from(rest).into(), options)
                    .await
                    .map_err(|source| Error::Storage { doing: "write", path: name, source })?;
            }
        }
        Ok(self.size)
    }
}

/// A local file being written. It goes again unless it is finished: what does not fit on a disk should not keep it full.
struct LocalFile {
    path: PathBuf,
    root: PathBuf,
    file: Option<File>,
}

impl LocalFile {
    /// Takes the file out for a piece of work, with its path for messages.
    fn taken(local: &mut Option<Self>, name: &str) -> (String, std::io::Result<Self>) {
        match local.take() {
            Some(open) => (open.path.display().to_string(), Ok(open)),
            None => (name.to_owned(), Err(std::io::Error::other("an earlier part of it could not be written"))),
        }
    }

    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(create_new(&self.path, &self.root)?),
        };
        file.write_all(bytes)
    }

    /// Makes the file durable; from now on it stays.
    fn finish(mut self) -> std::io::Result<()> {
        if let Some(file) = &self.file {
            file.sync_all()?;
        }
        // The file's name is durable only with its folder.
        self.path.parent().map_or(Ok(()), sync_dir)?;
        self.file = None;
        Ok(())
    }
}

impl Drop for LocalFile {
    fn drop(&mut self) {
        if self.file.is_some() {
            // What can't be removed now is an orphan for the clean-up.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Runs file work off the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(std::io::Error::other(e)))
}

fn create_new(path: &FilePath, root: &FilePath) -> std::io::Result<File> {
    let create = || File::options().write(true).create_new(true).open(path);
    match create() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && root.is_dir() => {
            if let Some(parent) = path.parent() {
                make_dirs(parent)?;
            }
            create()
        }
        other => other,
    }
}

/// Makes folders and fsyncs the one above each new one.
pub(crate) fn make_dirs(path: &FilePath) -> std::io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        make_dirs(parent)?;
    }
    match fs::create_dir(path) {
        // Another task was quicker.
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
        Ok(()) => path.parent().filter(|p| !p.as_os_str().is_empty()).map_or(Ok(()), sync_dir),
    }
}

pub(crate) fn sync_dir(path: &FilePath) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}
