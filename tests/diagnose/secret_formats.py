"""Invented secrets in the formats of many services. They are drawn at random, so no file contains one."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Iterator
from typing import NamedTuple

LOWER, UPPER, DIGITS = string.ascii_lowercase, string.ascii_uppercase, string.digits
WORD, HEX = LOWER + UPPER + DIGITS, DIGITS + "abcdef"
B64, URL = WORD + "+/", WORD + "-_"
BASE32 = UPPER + "234567"


class Secret(NamedTuple):
    """A text, and the part of it that must not be shown."""

    name: str
    text: str
    hidden: str

    def shown_in(self, text: str) -> bool:
        """Return True if ``text`` has 8 characters in a row of the hidden part, or all of a shorter one."""
        size = min(8, len(self.hidden))
        return any(self.hidden[at : at + size] in text for at in range(len(self.hidden) - size + 1))


# Name, text around the secret part, and its alphabet and length. Prefixes are in two pieces, so that scanners of this
# repository do not take them for secrets.
DRAWN = [
    # Clouds
    ("AWS access key", "AK" + "IA{}", BASE32, 16),
    ("AWS temporary key", "AS" + "IA{}", BASE32, 16),
    ("AWS secret", "aws_secret_access_key = {}", B64, 40),
    ("AWS secret in the environment", "export AWS_SECRET_ACCESS_KEY={}", B64, 40),
    ("AWS secret alone", "{}", B64, 40),
    ("AWS session token", '"SessionToken": "{}=="', B64, 180),
    ("Google API key", "AI" + "za{}", URL, 35),
    ("Google OAuth token", "ya" + "29.a0{}", URL, 120),
    ("Google OAuth secret", "GOC" + "SPX-{}", URL, 28),
    ("Google refresh token", "1/" + "/0{}", URL, 60),
    ("Azure storage key", "AccountKey={}==", B64, 86),
    (
        "Azure storage",
        "DefaultEndpointsProtocol=https;AccountName=a;AccountKey={}==;EndpointSuffix=example.net",
        B64,
        86,
    ),
    ("Azure service bus", "Endpoint=sb://a.example/;SharedAccessKeyName=r;SharedAccessKey={}=", B64, 43),
    ("Azure SAS", "https://a.blob.example/c?sv=2022-11-02&sp=r&sig={}%3D", WORD, 43),
    ("Azure client secret", "aB38" + "Q~{}", URL + ".~", 34),
    ("DigitalOcean", "dop_" + "v1_{}", HEX, 64),
    ("Heroku", "HEROKU_API_KEY=9f1c2b3a-4d5e-4f60-8a7b-{}", HEX, 12),
    ("Heroku of 2024", "HRKU" + "-AA{}", URL, 58),
    ("Databricks", "da" + "pi{}", HEX, 32),
    ("Cloudflare", "CF-Token: {}", URL, 40),
    ("Alibaba", "LT" + "AI{}", WORD, 20),
    ("Yandex", "AQ" + "VN{}", URL, 35),
    # Code hosts and package registries
    ("GitHub", "gh" + "p_{}", WORD, 36),
    ("GitHub OAuth", "gh" + "o_{}", WORD, 36),
    ("GitHub server", "gh" + "s_{}", WORD, 36),
    ("GitHub refresh", "gh" + "r_{}", WORD, 36),
    ("GitHub fine-grained", "github" + "_pat_11ABCDEFG0abcdefghijkl_{}", WORD, 59),
    ("GitLab", "gl" + "pat-{}", URL, 20),
    ("GitLab runner", "gl" + "rt-{}", URL, 20),
    ("Bitbucket", "AT" + "BB{}", WORD, 32),
    ("Atlassian", "ATAT" + "T3xFfGF0{}=1A2B3C4D", URL, 180),
    ("npm", "npm" + "_{}", WORD, 36),
    ("npm, old", "//registry.example/:_auth" + "Token={}", HEX, 36),
    ("PyPI", "py" + "pi-AgEIcHlwaS5vcmc{}", URL, 150),
    ("Docker", "dckr_" + "pat_{}", URL, 27),
    ("RubyGems", "rubygems" + "_{}", HEX, 48),
    ("Terraform", "aBcDeFgHiJkLmN.atlas" + "v1.{}", WORD, 67),
    ("Vault", "hv" + "s.{}", URL, 90),
    # Chat, mail, payment
    ("Slack bot", "xo" + "xb-123456789012-123456789012-{}", WORD, 24),
    ("Slack app", "xa" + "pp-1-A0ABCDEFGHI-1234567890123-{}", HEX, 64),
    ("Slack webhook", "https://hooks.slack.com/ser" + "vices/T0ABCDEFG/B0ABCDEFG/{}", WORD, 24),
    ("Discord bot", "MTA1234567890abcdefghijk.GabcDe.{}", URL, 38),
    ("Discord webhook", "https://discord.com/api/web" + "hooks/123456789012345678/{}", URL, 68),
    ("Telegram", "1234567890:AA{}", URL, 33),
    ("Teams webhook", "https://a.webhook.office.com/webhook" + "b2/{}@x/IncomingWebhook/y", HEX, 32),
    ("Stripe live", "sk_" + "live_{}", WORD, 24),
    ("Stripe restricted", "rk_" + "live_{}", WORD, 24),
    ("Stripe webhook", "wh" + "sec_{}", WORD, 32),
    ("Square", "EA" + "AA{}", URL, 60),
    ("Square OAuth", "sq0" + "csp-{}", URL, 43),
    ("PayPal", "access_token" + "$production$abcdefghijklmnop${}", HEX, 32),
    ("Shopify", "shp" + "at_{}", HEX, 32),
    ("Twilio account", "A" + "C{}", HEX, 32),
    ("Twilio key", "S" + "K{}", HEX, 32),
    ("Twilio token", "twilio auth token: {}", HEX, 32),
    ("SendGrid", "S" + "G.abcdefghijklmnopqrstuv.{}", URL, 43),
    ("Mailgun", "ke" + "y-{}", HEX, 32),
    ("Mailgun of 2023", "{}-1a2b3c4d-5e6f7a8b", HEX, 32),
    ("Mailchimp", "{}-us12", HEX, 32),
    ("Brevo", "xkey" + "sib-{}-AbCdEfGh12345678", HEX, 64),
    ("Postmark", "X-Postmark-Server-Token: 9f1c2b3a-4d5e-4f60-8a7b-{}", HEX, 12),
    # Models
    ("OpenAI", "s" + "k-{}", WORD, 48),
    ("OpenAI project", "sk-" + "proj-{}", URL, 150),
    ("Anthropic", "sk-" + "ant-api03-{}AA", URL, 93),
    ("Hugging Face", "h" + "f_{}", LOWER + UPPER, 34),
    ("Groq", "gs" + "k_{}", WORD, 52),
    ("Replicate", "r" + "8_{}", WORD, 37),
    ("Perplexity", "pp" + "lx-{}", WORD, 48),
    ("xAI", "xa" + "i-{}", WORD, 80),
    ("LangSmith", "lsv2_" + "pt_{}_1234567890", HEX, 32),
    ("Weights & Biases", "WANDB_API_KEY={}", HEX, 40),
    # Services of developers
    ("Linear", "lin_" + "api_{}", WORD, 40),
    ("Notion", "nt" + "n_{}", WORD, 46),
    ("Figma", "fig" + "d_{}", URL, 40),
    ("Airtable", "patAbCdEfGhIjKlMn" + ".{}", HEX, 64),
    ("Dropbox", "sl" + ".{}", URL, 130),
    ("New Relic", "NRA" + "K-{}", UPPER + DIGITS, 27),
    ("Datadog", "DD_API_KEY: {}", HEX, 32),
    ("Grafana", "gl" + "sa_{}_1a2b3c4d", WORD, 32),
    ("Sentry", "https://{}@o1.ingest.example/2", HEX, 32),
    ("Postman", "PM" + "AK-1234567890abcdef12345678-{}", HEX, 34),
    ("PlanetScale", "pscale_" + "tkn_{}", URL, 43),
    ("Doppler", "dp." + "pt.{}", WORD, 43),
    ("Supabase", "sb" + "p_{}", HEX, 40),
    ("age", "AGE-" + "SECRET-KEY-1{}", "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", 58),
    ("Ethereum", "0" + "x{}", HEX, 64),
    # Any service
    ("JWT", "ey" + "JhbGciOiJIUzI1NiJ9.ey" + "JzdWIiOiIxMjM0In0.{}", URL, 43),
    *(
        (
            f"{kind}private key",
            f"-----BEGIN {kind}PRIVATE {'KEY'}-----\n{{}}\n-----END {kind}PRIVATE {'KEY'}-----",
            B64,
            640,
        )
        for kind in ("", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED ")
    ),
    ("PGP key", "-----BEGIN PGP PRIVATE " + "KEY BLOCK-----\n\n{}\n-----END PGP PRIVATE " + "KEY BLOCK-----", B64, 300),
    ("private key, cut off", "-----BEGIN OPENSSH PRIVATE " + "KEY-----\n{}", B64, 300),
    ("Basic header", "Authorization: Basic {}==", WORD, 26),
    ("hex after a key", "signing_key: {}", HEX, 24),
    ("hex of 32", "{}", HEX, 32),
    ("hex of 64", "{}", HEX, 64),
    ("base64 of 44", "{}=", B64, 43),
]

PASSWORDS = [
    "password={}",
    "Password: {}",
    "pwd: '{}'",
    '"password": "{}"',
    r"{\"password\": \"{}\"}",
    "the password is {}",
    "DB_PASSWORD={}",
    "passphrase: {}",
    "pass: {}",
    "--password {}",
    "PGPASSWORD={} psql",
    "machine a.example login maria password {}",
    "<password>{}</password>",
    "postgres://maria:{}@db.example:5432/shop",
    "mongodb+srv://maria:{}@cluster0.example.net/",
    "redis://:{}@cache.example:6379/0",
    "https://maria:{}@example.org/",
    "curl -u maria:{} https://example.org",
    "mysql -u root -p{} shop",
    "Server=db;Database=shop;User Id=maria;Password={};",
    "jdbc:mysql://db/shop?user=maria&password={}",
    "SECRET_KEY = 'django-insecure-{}'",
    "Passwort: {}",
    "contraseña: {}",
    "密码：{}",
]

TOKENS = [
    "api_key: {}",
    "apiKey={}",
    "x-api-key: {}",
    "Authorization: Bearer {}",
    "Authorization: Token {}",
    "access_token={}",
    '"client_secret": "{}"',
    "secret_key = '{}'",
    "SECRET={}",
    "auth_token: {}",
    "https://api.example.org/v1?api_key={}&q=a",
    "https://example.org/reset?token={}",
    "Cookie: sessionid={}",
    "my api key is {}",
    "encryption key: {}",
]

PEOPLE = {
    "e-mail": "maria.lopez+shop@mail.example.org",
    "Visa": "4111 1111 1111 1111",
    "Visa with hyphens": "4012-8888-8888-1881",
    "Mastercard": "5555555555554444",
    "American Express": "3782 822463 10005",
    "Swiss phone": "+41 79 555 12 34",
    "US phone": "(415) 555-0132",
    "US phone with hyphens": "415-555-0132",
    "US phone with dots": "415.555.0132",
    "US phone without separators": "4155550132",
    "toll-free phone": "1-800-555-0199",
    "UK phone": "020 7946 0958",
    "UK phone in brackets": "(020) 7946 0958",
    "French phone": "06 12 34 56 78",
    "German phone": "030/1234567",
    "Indian phone": "+91 98765 43210",
    "phone with 00": "0044 20 7946 0958",
    "SSN": "078-05-1120",
    "IPv4": "192.168.17.4",
    "IPv4 with port": "10.20.30.40:8080",
    "IPv6": "2001:db8:85a3::8a2e:370:7334",
    "IPv6 in full": "2001:db8:85a3:0:0:8a2e:370:7334",
    "IPv6 local": "fe80::1ff:fe23:4567:890a",
    "MAC": "00:1A:2B:3C:4D:5E",
    "IBAN with spaces": "DE89 3704 0044 0532 0130 00",
    "IBAN": "GB82WEST12345698765432",
    "UUID": "9f1c2b3a-4d5e-4f60-8a7b-1c2d3e4f5a6b",
}

NUMBERS = {"call {}": "555-0132", "OTP {}": "482913", "account number {}": "123456789", "PIN: {}": "4821"}


def invented(seed: int) -> Iterator[Secret]:
    """Yield one secret of each format. Another seed gives other values."""
    source = random.Random(seed)

    def draw(alphabet: str, length: int) -> str:
        return "".join(source.choice(alphabet) for _ in range(length))

    for name, pattern, alphabet, length in DRAWN:
        body = draw(alphabet, length)
        yield Secret(name, pattern.replace("{}", body), body)
    account = {"type": "service_account", "private_key_id": draw(HEX, 40), "private_key": draw(B64, 640)}
    block = f"-----BEGIN PRIVATE {'KEY'}-----\n{account['private_key']}\n-----END PRIVATE {'KEY'}-----\n"
    yield Secret("Google account", json.dumps({**account, "private_key": block}), account["private_key"])
    yield Secret("Google account's key id", json.dumps({**account, "private_key": block}), account["private_key_id"])
    for patterns, word in ((PASSWORDS, draw(WORD + "!$%*", 14)), (TOKENS, draw(WORD, 22))):
        yield from (Secret(each, each.replace("{}", word), word) for each in patterns)
    yield from (Secret(name, text, text) for name, text in PEOPLE.items())
    yield from (Secret(pattern, pattern.replace("{}", text), text) for pattern, text in NUMBERS.items())
