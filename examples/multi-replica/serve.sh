#!/bin/sh
# Two replicas and nginx before them, until Ctrl+C or SIGTERM. Wants DATABASE_URL and REDIS_URL.
# PORT (8080) is nginx's; the replicas take the two after it. FOLDER (data) is for what they write.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
: "${DATABASE_URL:?is not set, for example postgresql://user:password@localhost/mnemosine}"
: "${REDIS_URL:?is not set, for example redis://localhost:6379/0}"
port=${PORT:-8080}
folder=${FOLDER:-$here/data}

# Whoever signed in at one replica is known to the other. In earnest: one that stays, from where you keep secrets.
SECRET_KEY=${SECRET_KEY:-$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')}
AGENTS_DIR=${AGENTS_DIR:-$here/../support-bot/agents}
HOST=127.0.0.1 TRUSTED_PROXIES=127.0.0.1 KEEP_ALIVE_SECONDS=75
export DATABASE_URL REDIS_URL SECRET_KEY AGENTS_DIR HOST TRUSTED_PROXIES KEEP_ALIVE_SECONDS

mkdir -p "$folder"
for number in 1 2; do
  DATA_DIR=$folder/replica-$number mnemosine serve --port $((port + number)) &
  pids="${pids:-} $!"
done

# The configuration for production, with the addresses of this machine.
sed -e "s/replica-1:8000/127.0.0.1:$((port + 1))/" -e "s/replica-2:8000/127.0.0.1:$((port + 2))/" \
  -e "s/listen 8080;/listen 127.0.0.1:$port;/" "$here/../../deploy/nginx.conf" > "$folder/mnemosine.conf"
cp "$here/nginx.conf" "$folder/nginx.conf"
user=$([ "$(id -u)" -ne 0 ] || echo 'user root;')
nginx -p "$folder" -c nginx.conf -e stderr -g "daemon off; $user" &
pids="$pids $!"

# Ctrl+C reaches all of them by itself; SIGTERM only this script.
trap : INT
trap 'kill $pids 2>/dev/null || true' TERM
wait || true
wait
