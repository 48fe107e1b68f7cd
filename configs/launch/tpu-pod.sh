#!/bin/bash
# A run on a Cloud TPU slice of several hosts, from a machine with gcloud: one process a host, all of its chips.
#
#   TPU=my-slice ZONE=us-east5-a bash tpu-pod.sh llama3.1-8b out=/shared/runs/llama \
#       checkpoint.directory=gs://bucket/runs/llama data.path=/data/llama3.1-8b
#
# jaxscale[tpu] is installed on every host, and `jaxscale` is on the PATH there. The processes find the coordinator (host 0),
# their ranks and their number in the metadata of the TPU. Port 8476 must be open between the slice's hosts, and closed
# to all others. Checkpoints must be seen by all hosts: a bucket (jaxscale[gcs] too), or a shared file system. `out` (figures and
# events, which host 0 writes) and `data.path` are directories.
#
# After a crash (76 a process vanished, 77 a hang, any other) every host starts again, from the newest checkpoint. Exit code 75
# is a slice that was told to stop, or is being taken away: saved; run the same command again when there is one. To stop:
#   gcloud compute tpus tpu-vm ssh $TPU --zone=$ZONE --worker=all --command='pkill -TERM -f "jaxscale train"'
set -euo pipefail
: "${TPU:?set TPU to the name of the slice}" "${ZONE:?set ZONE to the zone of the slice}"
restarts=${RESTARTS:-10}

arguments=$(printf '%q ' "$@")
on_each_host="
for restart in \$(seq 0 $restarts); do
    jaxscale train $arguments runtime.distributed=always
    code=\$?
    case \$code in 0 | 2 | 75 | 78 | 130) break ;; esac
    echo \"exit code \$code; \$((restart + 1)) of $restarts restarts\" >&2
    sleep 10
done
exit \$code"

gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$on_each_host"
