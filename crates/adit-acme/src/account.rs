//! The account at the CA: the one we have kept, or a new one.

use std::sync::Arc;

use adit_config::CertificateResolver;
use instant_acme::{Account, AccountCredentials, ExternalAccountKey, NewAccount};

use crate::client::{Client, Seen, Transport};
use crate::error::AcmeError;
use crate::store::{Lock, Store, StoredAccount};

/// A way to the CA.
pub(crate) struct Path<'a> {
    pub(crate) resolver: &'a CertificateResolver,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) seen: Arc<Seen>,
}

impl Path<'_> {
    fn client(&self) -> Box<Client> {
        Client::new(Arc::clone(&self.transport), self.resolver.client_timeout, &self.seen)
    }

    /// The account kept for this CA and address.
    pub(crate) async fn open(&self, stored: Option<&StoredAccount>) -> Result<Option<Account>, AcmeError> {
        let Some(stored) = stored.filter(|stored| self.fits(stored)) else { return Ok(None) };
        let credentials: Result<AccountCredentials, _> = serde_json::from_value(stored.credentials.clone());
        match credentials {
            Ok(credentials) => {
                let builder = Account::builder_with_http(self.client());
                Ok(Some(builder.from_credentials(credentials).await?))
            }
            Err(_) => Ok(None),
        }
    }

    /// A new account, kept before it is used.
    pub(crate) async fn create(&self, store: &Store, lock: &Lock, name: &str) -> Result<Account, AcmeError> {
        let contact = self.resolver.email.as_ref().map(|email| format!("mailto:{email}"));
        let contacts: Vec<&str> = contact.iter().map(String::as_str).collect();
        let binding = self.resolver.external_account.as_ref();
        let binding = binding.map(|key| ExternalAccountKey::new(key.key_id.clone(), key.key.expose()));
        let wish =
            NewAccount { contact: &contacts, terms_of_service_agreed: true, only_return_existing: false };
        let builder = Account::builder_with_http(self.client());
        let created = builder.create(&wish, self.resolver.directory.clone(), binding.as_ref()).await;
        let (account, credentials) = created?;
        let credentials = serde_json::to_value(&credentials)
            .map_err(|_| AcmeError::Answer("credentials without a form".to_owned()))?;
        let stored = StoredAccount {
            directory: self.resolver.directory.clone(),
            email: self.resolver.email.clone(),
            credentials,
        };
        store.save_account(lock, name, &stored)?;
        tracing::info!(resolver = name, directory = %self.resolver.directory, "account registered at the CA");
        Ok(account)
    }

    fn fits(&self, stored: &StoredAccount) -> bool {
        stored.directory == self.resolver.directory && stored.email == self.resolver.email
    }
}
