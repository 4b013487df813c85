//! A certificate authority of one test, and the server's certificate that it signed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};

/// The PEM files that a server with TLS, and its client, read.
#[derive(Debug)]
pub(crate) struct Certificates {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Certificates {
    /// Writes new ones, valid for `localhost` and `127.0.0.1`, into a folder.
    pub(crate) fn write(folder: &Path) -> Self {
        let files =
            Self { ca: folder.join("ca.pem"), certificate: folder.join("server.pem"), key: folder.join("server.key") };
        let (ca, certificate, key) = signed().expect("the parameters of the test certificates are constants");
        for (path, pem) in [(&files.ca, ca), (&files.certificate, certificate), (&files.key, key)] {
            fs::write(path, pem).expect("the temporary folder is writable");
        }
        files
    }
}

/// The authority's certificate, the server's certificate and the server's key, as PEM.
fn signed() -> Result<(String, String, String), rcgen::Error> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "larder test authority");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, "localhost");
    let certificate = params.signed_by(&key, &authority)?;
    Ok((authority.pem(), certificate.pem(), key.serialize_pem()))
}
