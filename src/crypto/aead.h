/* Authenticated encryption with AES-256-GCM, and keys from keys with HKDF-SHA256 (RFC 5869). Functions return 0 or
 * SYM_E* with a message, but for aead_open, whose refusals must be cheap. */
#ifndef SYM_CRYPTO_AEAD_H
#define SYM_CRYPTO_AEAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { AEAD_KEY_LEN = 32, AEAD_NONCE_LEN = 12, AEAD_TAG_LEN = 16 };

/* What is made once and used for every message; holds no key between calls that matters to anybody. */
struct aead;
int aead_new(struct aead **out);
void aead_free(struct aead *a); /* NULL is fine */

/* @n bytes of @plain to n + AEAD_TAG_LEN bytes at @out, which may be where @plain is. A nonce must never be used twice
 * with a key. SYM_EIO. */
int aead_seal(struct aead *a, const uint8_t key[AEAD_KEY_LEN], const uint8_t nonce[AEAD_NONCE_LEN],
    const void *aad, size_t aad_len, const void *plain, size_t n, uint8_t *out);
/* The other way: @n bytes with the tag to n - AEAD_TAG_LEN at @out, which may be where @sealed is. False if they are
 * not what was sealed with key, nonce and @aad, or without memory; @out then holds nothing of worth. */
bool aead_open(struct aead *a, const uint8_t key[AEAD_KEY_LEN], const uint8_t nonce[AEAD_NONCE_LEN],
    const void *aad, size_t aad_len, const void *sealed, size_t n, uint8_t *out);

/* @n bytes, at most 255 * 32, of a key of their own for @info. SYM_EIO. */
int aead_derive(struct aead *a, const void *secret, size_t secret_len, const void *salt, size_t salt_len,
    const void *info, size_t info_len, uint8_t *out, size_t n);

#endif
