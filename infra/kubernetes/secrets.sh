#!/usr/bin/env bash
# Makes every secret of the namespace deltasae, once. What is there already stays: delete a secret to have it made anew.
# Values go through files that only you can read, never through a command line.
#   bash infra/kubernetes/secrets.sh
set -euo pipefail
umask 077
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

make() { # name, then what `kubectl create secret generic` takes
    local name=$1
    shift
    if kubectl --namespace deltasae get secret "$name" >/dev/null 2>&1; then
        echo "$name is there"
    else
        kubectl --namespace deltasae create secret generic "$name" "$@"
    fi
}
random() { openssl rand -hex 24 | tr -d '\n'; }

random >redis
make deltasae-redis --from-file=password=redis

# Hex digits: the password becomes part of an address.
random >database
random >flask
random >password
printf deltasae >username
printf 'postgresql+psycopg2://mlflow:%s@postgres:5432/mlflow' "$(cat database)" >uri
cat >auth.ini <<END
[mlflow]
default_permission = EDIT
database_uri = $(cat uri)
admin_username = $(cat username)
admin_password = $(cat password)
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
END
if kubectl --namespace deltasae get secret deltasae-mlflow >/dev/null 2>&1; then
    echo "deltasae-mlflow is there, and with it mlflow-login"
else
    make mlflow-login --from-file=username=username --from-file=password=password
    make deltasae-mlflow --from-file=postgres-password=database --from-file=store-uri=uri --from-file=flask-key=flask --from-file=auth.ini=auth.ini
fi

# A certificate that only this namespace's clients trust, for two years.
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 730 -subj /CN=mlflow -keyout tls.key -out tls.crt 2>/dev/null \
    -addext "subjectAltName=DNS:mlflow,DNS:mlflow.deltasae,DNS:mlflow.deltasae.svc,DNS:localhost,IP:127.0.0.1"
make mlflow-tls --from-file=tls.crt=tls.crt --from-file=tls.key=tls.key --from-file=ca.crt=tls.crt

# For gated models: the token of `hf auth login`. Without it only open models load.
if [ -s "${HF_TOKEN_PATH:-$HOME/.cache/huggingface/token}" ]; then
    tr -d '\n' <"${HF_TOKEN_PATH:-$HOME/.cache/huggingface/token}" >token
    make huggingface --from-file=token=token
else
    echo "no token of the model hub: gated models will not load"
fi
