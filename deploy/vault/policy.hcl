# All that the pods of one auth role may do in Vault. setup.sh writes it once for each vault_role, with that one's name.

# To read a credential. Not to list vault_roles, not to see how they are defined.
path "database/creds/db-app" {
  capabilities = ["read"]
}

# To keep the credential and the token that it was read with, and to end both. The policy "default" grants this as well,
# and more (cubbyhole, wrapping, identity tokens), and others may change it: so the tokens go without it.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
path "auth/token/revoke-self" {
  capabilities = ["update"]
}
path "sys/leases/lookup" {
  capabilities = ["update"]
}
path "sys/leases/renew" {
  capabilities = ["update"]
}
