//! `tls-server-end-point`: what SCRAM-SHA-256-PLUS is bound to, the hash of the certificate that the server showed.

use ring::digest;
use x509_cert::der::asn1::{AnyRef, ContextSpecific};
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::oid::db::{DB, rfc5912 as oid};
use x509_cert::der::{self, Decode, Reader, SliceReader, TagNumber};
use x509_cert::spki::AlgorithmIdentifierRef;

/// Hash of the server's certificate, for a login over TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EndPointHash(Vec<u8>);

/// Why a certificate has no such hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EndPointError {
    #[error("channel binding is not defined for a certificate signed with {algorithm}")]
    Undefined { algorithm: String },
    #[error("server's certificate cannot be read")]
    Malformed(#[from] der::Error),
}

impl EndPointHash {
    /// Of the server's own certificate in DER.
    ///
    /// RFC 5929 §4.1: the hash function of the certificate's signature, with SHA-256 in place of MD5 and SHA-1. A
    /// signature without one hash function (Ed25519, Ed448) has no binding; one whose hash we do not know
    /// (SHA-224, SHA-3) none with us.
    pub(crate) fn of_certificate(certificate: &[u8]) -> Result<Self, EndPointError> {
        let signature = signature_algorithm(certificate)?;
        let hash = if signature.oid == oid::ID_RSASSA_PSS { pss_hash(&signature)? } else { signature.oid };
        let algorithm =
            hash_function(hash).ok_or_else(|| EndPointError::Undefined { algorithm: name(hash) })?;
        Ok(Self(digest::digest(algorithm, certificate).as_ref().to_vec()))
    }
}

impl AsRef<[u8]> for EndPointHash {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// RFC 5280 §4.1: Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm, signatureValue }. The rest is not
/// looked at: whether the certificate is a good one is for TLS to say.
fn signature_algorithm(certificate: &[u8]) -> der::Result<AlgorithmIdentifierRef<'_>> {
    SliceReader::new(certificate)?.sequence(|certificate| {
        AnyRef::decode(certificate)?;
        let algorithm = AlgorithmIdentifierRef::decode(certificate)?;
        AnyRef::decode(certificate)?;
        Ok(algorithm)
    })
}

/// RFC 4055 §3.1: `RSASSA-PSS-params ::= SEQUENCE { hashAlgorithm [0] HashAlgorithm DEFAULT sha1Identifier, … }`.
fn pss_hash(signature: &AlgorithmIdentifierRef<'_>) -> der::Result<ObjectIdentifier> {
    let parameters = signature.parameters.ok_or_else(|| der::Tag::Sequence.value_error())?;
    parameters.sequence(|parameters| {
        let hash = ContextSpecific::<AlgorithmIdentifierRef<'_>>::decode_explicit(parameters, TagNumber::N0)?;
        while !parameters.is_finished() {
            AnyRef::decode(parameters)?;
        }
        Ok(hash.map_or(oid::ID_SHA_1, |hash| hash.value.oid))
    })
}

/// By the algorithm of a signature, or by that of a hash for RSA-PSS.
fn hash_function(algorithm: ObjectIdentifier) -> Option<&'static digest::Algorithm> {
    Some(match algorithm {
        oid::ID_MD_5
        | oid::ID_SHA_1
        | oid::ID_SHA_256
        | oid::MD_5_WITH_RSA_ENCRYPTION
        | oid::SHA_1_WITH_RSA_ENCRYPTION
        | oid::SHA_256_WITH_RSA_ENCRYPTION
        | oid::DSA_WITH_SHA_1
        | oid::DSA_WITH_SHA_256
        | ECDSA_WITH_SHA_1
        | oid::ECDSA_WITH_SHA_256 => &digest::SHA256,
        oid::ID_SHA_384 | oid::SHA_384_WITH_RSA_ENCRYPTION | oid::ECDSA_WITH_SHA_384 => &digest::SHA384,
        oid::ID_SHA_512 | oid::SHA_512_WITH_RSA_ENCRYPTION | oid::ECDSA_WITH_SHA_512 => &digest::SHA512,
        _ => return None,
    })
}

/// For people: the name, or the number of an algorithm that has none here.
fn name(algorithm: ObjectIdentifier) -> String {
    DB.by_oid(&algorithm).map_or_else(|| algorithm.to_string(), str::to_owned)
}

/// RFC 3279 §2.2.3.
const ECDSA_WITH_SHA_1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.1");

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm};
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    use super::*;

    fn signed_with(algorithm: &'static SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    fn hex(hash: &EndPointHash) -> String {
        hash.as_ref().iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        })
    }

    #[test]
    fn ecdsa_certificate_is_hashed_as_its_signature_is() {
        for (signature, hash) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, &digest::SHA256),
            (&rcgen::PKCS_ECDSA_P384_SHA384, &digest::SHA384),
        ] {
            let certificate = signed_with(signature);
            let expected = digest::digest(hash, &certificate);
            assert_eq!(EndPointHash::of_certificate(&certificate).unwrap().as_ref(), expected.as_ref());
        }
    }

    /// Certificates and hashes by OpenSSL: `openssl dgst -sha256` and its like over the DER form.
    #[test]
    fn rsa_certificates_have_the_hash_that_openssl_gives() {
        for (pem, expected) in [
            (
                include_str!("../../tests/fixtures/rsa_sha1.pem"),
                "08fd4559cec166c25dcab13a229b8de8488f5397deda3d1182c87f42e14681ee",
            ),
            (
                include_str!("../../tests/fixtures/rsa_sha512.pem"),
                "cb24fa32a08a9259be7b7ff43cf9c73bb8bfdfa8580651b1a50bbfdaa0650d15\
                 bd1333c3688a797fa27a2fcd69e6bf6ad8685919abbe7240baed6a1ba152c9e6",
            ),
            (
                include_str!("../../tests/fixtures/rsa_pss_sha1.pem"),
                "eba5b2372a854e2ce787931200912c24c192ec28af2f07449388068f6f25f5e8",
            ),
            (
                include_str!("../../tests/fixtures/rsa_pss_sha384.pem"),
                "8fb8d733f7f6220e01594f61da70e2ca81b1d45bb733f27ad56e4a93d017d0fd\
                 475a39793ae4d59b6316226154714b4d",
            ),
        ] {
            let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
            assert_eq!(hex(&EndPointHash::of_certificate(&certificate).unwrap()), expected);
        }
    }

    #[test]
    fn ed25519_certificate_has_no_hash_and_says_why() {
        let error = EndPointHash::of_certificate(&signed_with(&rcgen::PKCS_ED25519)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "channel binding is not defined for a certificate signed with id-Ed25519"
        );
    }

    #[test]
    fn cut_certificate_is_an_error_at_each_place() {
        let whole = signed_with(&rcgen::PKCS_ECDSA_P256_SHA256);
        for cut in 0..whole.len() {
            assert!(
                matches!(EndPointHash::of_certificate(&whole[..cut]), Err(EndPointError::Malformed(_))),
                "cut at {cut}"
            );
        }
    }
}
