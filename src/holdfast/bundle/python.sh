# Takes a Python from standard input, on a node that has none: any POSIX shell, gzip, tar and sha256sum. Whoever sends
# this sets before it: mark; folder, of bundles; name, what it will be called there; half, what came of it before, with
# begun bytes, or nothing; size and sha256 of the archive; settle, a text for that Python. What follows is the archive
# from that byte on. The last line is `MARK ok`, `MARK taken` where half is somebody else's by now, or `MARK` and why not.
export LC_ALL=C PATH="$PATH:/usr/local/bin:/usr/bin:/bin"
unset __PYVENV_LAUNCHER__ # says where a Python is, whatever -I says to it
umask 077
part=$folder/.$name.$$@$(uname -n).part # by this others know whether we live

end() {
  printf '\n%s %s\n' "$mark" "$*"
  exit
}

refuse() {
  cd / && rm -rf "$part"
  end "$@"
}

last() { printf '%s\n' "$said" | tail -n 1; }

for each in gzip tar sha256sum; do
  command -v $each >/dev/null || end "it has no $each"
done
said=$(mkdir -p "$folder" 2>&1) || end "$folder cannot be written: ${said##*: }"
[ -n "$(find "$folder" -prune -type d -user "$(id -u)" ! -perm -020 ! -perm -002)" ] ||
  end "$folder can be written by others than you"

if [ "$folder/$half" != "$part" ]; then
  rm -rf "$part" # of a dead process that had our number
  if [ -n "$half" ]; then mv "$folder/$half" "$part" 2>/dev/null || end taken; else mkdir "$part"; fi
fi
said=$( (: >>"$part/archive") 2>&1) || refuse "$folder cannot be written: ${said##*: }"
[ "$(wc -c <"$part/archive")" -eq "$begun" ] || end taken

said=$( (cat >>"$part/archive") 2>&1) || refuse "$folder cannot be written: ${said##*: }"
[ "$(wc -c <"$part/archive")" -ge "$size" ] || end "the push was cut" # and goes on from there
said=$(sha256sum <"$part/archive")
[ "${said%% *}" = "$sha256" ] || refuse "its Python did not arrive as it was sent, try again"

rm -rf "$part/python"
mkdir "$part/python"
said=$( (cd "$part/python" && gzip -dc ../archive | tar -xof -) 2>&1) || refuse "its Python cannot be unpacked: $(last)"
said=$("$part/python/bin/python3" -I -c "$settle" "$part/python" "$folder/$name" 2>&1 </dev/null) ||
  refuse "its Python does not run there: $(last)"
refuse ok
