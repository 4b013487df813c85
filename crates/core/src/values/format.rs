//! How a value is written: as the response that would carry it, so that every store, tool and process reads it alike.

use crate::lz4::{compressed, decompressed};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use serde::{Serialize, de::DeserializeOwned};
use std::borrow::Cow;

/// In which form values are written. What was written in another one is read all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Format {
    /// JSON: readable in `redis-cli`, and by other languages. The default.
    #[default]
    Json,
    /// Postcard: compact, and quick to read; only Rust programs with the very same types read it.
    #[cfg(feature = "postcard")]
    Postcard,
}

impl Format {
    fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            #[cfg(feature = "postcard")]
            Self::Postcard => "application/x-postcard",
        }
    }

    fn of(media_type: &[u8]) -> Option<Self> {
        match media_type {
            b"application/json" => Some(Self::Json),
            #[cfg(feature = "postcard")]
            b"application/x-postcard" => Some(Self::Postcard),
            _ => None,
        }
    }

    /// Writes a value; what is of `limit` bytes or more is compressed, if that makes it shorter. The headers tell both.
    pub(super) fn write<T: Serialize>(self, value: &T, limit: usize) -> Result<(HeaderMap, Bytes), String> {
        let written = match self {
            Self::Json => serde_json::to_vec(value).map_err(|error| error.to_string())?,
            #[cfg(feature = "postcard")]
            Self::Postcard => postcard::to_allocvec(value).map_err(|error| error.to_string())?,
        };
        let mut headers = HeaderMap::with_capacity(2);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.media_type()));
        let body = match compressed(&written, limit) {
            Some(shorter) => {
                headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(LZ4));
                shorter
            }
            None => written,
        };
        Ok((headers, body.into()))
    }

    /// Reads what was written; nothing, if it is of another type, damaged, or in a form that this build does not know.
    pub(super) fn read<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Option<T> {
        // With one field, it is that of the type: a value is read quickly.
        let coding = if headers.len() > 1 { headers.get(header::CONTENT_ENCODING) } else { None };
        let body = match coding {
            None => Cow::Borrowed(body),
            Some(coding) if coding == LZ4 => Cow::Owned(decompressed(body)?),
            Some(_) => return None,
        };
        match Self::of(headers.get(header::CONTENT_TYPE)?.as_bytes())? {
            Self::Json => serde_json::from_slice(&body).ok(),
            #[cfg(feature = "postcard")]
            Self::Postcard => postcard::from_bytes(&body).ok(),
        }
    }
}

/// The content coding of what is compressed: a block of LZ4 after its length.
const LZ4: &str = "lz4";

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: &[Format] = &[
        Format::Json,
        #[cfg(feature = "postcard")]
        Format::Postcard,
    ];

    #[test]
    fn what_is_written_is_read_again_whatever_is_written_now() {
        for format in FORMATS {
            for value in [String::new(), "a value".to_owned(), "long ".repeat(1000)] {
                let (headers, body) = format.write(&value, 64).expect("it can be written");
                assert_eq!(Format::read::<String>(&headers, &body), Some(value), "{format:?}");
                assert_eq!(Format::read::<(u64, Vec<u8>)>(&headers, &body[..body.len() / 2]), None, "{format:?}");
            }
        }
    }

    #[test]
    fn what_is_in_no_known_form_is_not_read() {
        let (known, body) = Format::Json.write(&7, 64).expect("it can be written");
        let with = |name, value| {
            let mut headers = known.clone();
            headers.insert(name, HeaderValue::from_static(value));
            headers
        };
        assert_eq!(Format::read::<u32>(&known, &body), Some(7));
        assert_eq!(Format::read::<String>(&known, &body), None);
        assert_eq!(Format::read::<u32>(&HeaderMap::new(), &body), None);
        assert_eq!(Format::read::<u32>(&with(header::CONTENT_TYPE, "text/html"), &body), None);
        assert_eq!(Format::read::<u32>(&with(header::CONTENT_ENCODING, "gzip"), &body), None);
    }

    #[cfg(feature = "lz4")]
    #[test]
    fn a_long_value_is_compressed_and_a_damaged_one_is_not_read() {
        let value = "long ".repeat(1000);
        let (headers, body) = Format::Json.write(&value, 64).expect("it can be written");
        assert!(body.len() < 200 && headers[header::CONTENT_ENCODING] == LZ4);
        let random: Vec<u64> = (0..100).map(|_| fastrand::u64(..)).collect();
        let (headers, plain) = Format::Json.write(&random, usize::MAX).expect("it can be written");
        assert!(!headers.contains_key(header::CONTENT_ENCODING) && plain.len() > 1000);
        let (headers, _) = Format::Json.write(&value, 64).expect("it can be written");
        for damaged in [&[][..], &[255; 3], &[255, 255, 255, 255, 0], &body[..20]] {
            assert_eq!(Format::read::<String>(&headers, damaged), None);
        }
    }
}
