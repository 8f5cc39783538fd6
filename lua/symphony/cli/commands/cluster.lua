-- symphony cluster ...: backup and restore, which run in the client, as it has the file; the change of the CA; others
-- are in ../.
local errors = require "symphony.errors"

local function sha256(text)
  return require("sym.crypto").sha256(text)
end

-- As the daemon shows the hash of a value.
local function hash_hex(text)
  return require("sym.crypto").hex(sha256(text))
end

local backup = {
  name = "backup",
  summary = "Write the users' data to a file",
  description = [[
Writes keys, tokens, policies, resources and assignments, as they are at one revision, to FILE (mode
0600; - for standard output). Not in it: members, certificates and secrets.

Example:
  symphony cluster backup /var/backups/symphony.jsonl]],
  where = "client",
  args = function(parser)
    parser:argument("file", "Where to write; an existing file is replaced at the end."):argname("FILE")
  end,
  run = function(ctx)
    local module, sys = require "symphony.cluster.backup", require "sym.sys"
    local chunks = {}
    local ok, err = ctx.call("GET", "/v1/backup", nil, { on_data = function(chunk) chunks[#chunks + 1] = chunk end,
      idle_ms = 30000 })
    if not ok then return nil, err end
    local header, entries = module.collect(table.concat(chunks))
    if not header then return nil, entries end
    local text = module.file(header, entries, sha256)
    if ctx.args.file == "-" then
      ctx.out(text)
      ctx.printed = true
      return true
    end
    ok, err = sys.write_file(ctx.args.file, text, tonumber("600", 8))
    if not ok then return nil, errors.new(err.code, "cannot write the backup: " .. err.message) end
    return { file = ctx.args.file, keys = header.keys, revision = header.revision, bytes = #text,
      cluster_id = header.cluster_id }, { text = function(data)
      return ("%s: %d keys at revision %d, %d bytes"):format(data.file, data.keys, data.revision, data.bytes)
    end }
  end,
}

-- What the cluster has below @prefixes, key by key with the hashes of the values, from the daemon a page at a time.
local function present(ctx, prefixes)
  local remote, values = require "symphony.cluster.remote", require "symphony.cluster.values"
  local sorted = table.move(prefixes, 1, #prefixes, 1, {})
  table.sort(sorted)
  local page, i, after, more = {}, 0, nil, true
  local p = 1
  return function()
    while true do
      i = i + 1
      if page[i] then return { key = assert(values.get_bytes(page[i], "k")), hash = page[i].h } end
      if not more then
        p, after, more = p + 1, nil, true
      end
      if not sorted[p] then return nil end
      local path = "/v1/restore/keys?prefix=" .. remote.encode_segment(sorted[p])
      if after then path = path .. "&after=" .. remote.encode_segment(after) end
      local answer, err = ctx.call("GET", path)
      if not answer then error(err, 0) end
      page, i, more = answer.keys, 0, answer.more == true
      if #page > 0 then after = assert(values.get_bytes(page[#page], "k")) end
    end
  end
end

local restore = {
  name = "restore",
  summary = "Bring the users' data back to what a backup holds",
  description = [[
Brings keys, tokens, policies, resources and assignments to what FILE holds; what is not in it is
deleted. Members, secrets and the cluster's identity stay. The file is checked as a whole before
anything is changed. It goes in many steps: interrupted, it is finished by saying it again. The
revision only grows.

Example:
  symphony cluster restore /var/backups/symphony.jsonl]],
  where = "client",
  args = function(parser)
    parser:argument("file", "A file of `cluster backup`."):argname("FILE")
    parser:flag("--force", "Also a backup of another cluster (without its tokens and assignments).")
    parser:flag("-y --yes", "Do not ask.")
  end,
  run = function(ctx)
    local module, steps = require "symphony.cluster.backup", require "symphony.cluster.restore"
    local text, err = require("sym.sys").read_file(ctx.args.file, 4 << 30)
    if not text then return nil, errors.new(err.code, "cannot read the backup: " .. err.message) end
    local header, entries, digest = module.parse(text, sha256)
    if not header then return nil, entries end
    local question = ("The data of this cluster becomes that of %s: %d keys, as they were at revision %s. What is not "
      .. "in it is deleted. Go on?"):format(ctx.args.file, #entries, tostring(header.revision))
    if not ctx.confirm(question) then
      return nil, errors.new("canceled", "nothing was changed", "say yes to the question, or --yes where nobody can")
    end
    local function call(method, path, body)
      local answer, why = ctx.call(method, path, body, { timeout_ms = 30000 })
      if not answer then error(why, 0) end
      return answer
    end
    local mark = { digest = digest, source = ctx.args.file:match("[^/]*$"):sub(1, 200), cluster_id = header.cluster_id,
      force = ctx.args.force or false }
    local begun = call("POST", "/v1/restore/begin", mark)
    local wanted = steps.select(entries, begun.foreign)
    local changed, deleted = 0, 0
    for batch in steps.batches(steps.diff(wanted, present(ctx, begun.prefixes), hash_hex)) do
      call("POST", "/v1/restore/apply", { digest = digest, ops = steps.encode(batch) })
      for _, change in ipairs(batch) do
        if change.value then changed = changed + 1 else deleted = deleted + 1 end
      end
    end
    local done = call("POST", "/v1/restore/end", { digest = digest })
    return { file = ctx.args.file, keys = #wanted, written = changed, deleted = deleted, epoch = done.epoch,
      resumed = begun.resumed or false, foreign = begun.foreign }, { text = function(data)
      return ("Restored %s: %d keys, %d of them written, %d others deleted."):format(data.file, data.keys, data.written,
        data.deleted)
    end }
  end,
}

-- rotate-ca ----------------------------------------------------------------------------------------------------------

local PHASES = {
  idle = "no change of the CA is under way",
  both = "step 1 of 3: the new CA is trusted beside the old one, which signs still",
  renew = "step 2 of 3: the new CA signs, and every node has its certificate renewed",
}

local function list_of(names)
  local shown = table.concat(names, ", ", 1, math.min(#names, 20))
  return #names > 20 and ("%s and %d more"):format(shown, #names - 20) or shown
end

-- What ends with the old CA.
local function losses(s)
  local lines = {}
  if #s.clients > 0 then
    lines[#lines + 1] = ("Client certificates of the old CA, void at its end (`symphony cert issue --force` makes "
      .. "new ones%s): %s"):format(s.phase == "both" and " once the new CA signs" or "", list_of(s.clients))
  end
  if s.tokens > 0 then
    lines[#lines + 1] = ("Join tokens of the old CA, void at its end: %d (`symphony token create` makes new ones)")
      :format(s.tokens)
  end
  return lines
end

local function status_text(s)
  local lines = { ("CA %s, generation %d: %s."):format(s.ca:sub(1, 16), s.generation, PHASES[s.phase]) }
  if s.phase == "idle" then
    if s.rotated then lines[1] = lines[1] .. " The last one was done at " .. os.date("!%F %T UTC.", s.rotated) end
    return lines[1]
  end
  if #s.waiting > 0 then
    lines[#lines + 1] = ("It waits for %d of %d nodes:"):format(#s.waiting, s.nodes)
    for i = 1, math.min(#s.waiting, 20) do
      local n = s.waiting[i]
      lines[#lines + 1] = ("  %s (%s) %s"):format(n.name, n.role, n.why)
    end
    if #s.waiting > 20 then lines[#lines + 1] = ("  and %d more"):format(#s.waiting - 20) end
    lines[#lines + 1] = "A node that is down holds it up: start it, or remove it from the cluster."
  elseif s.phase == "renew" and s.wait_clients and #s.clients > 0 then
    lines[#lines + 1] = "Every node has a new certificate. It waits for the client certificates (--wait-clients)."
  end
  if #s.damaged > 0 then
    lines[#lines + 1] = "Damaged records in the state, passed over with what they were of: " .. list_of(s.damaged)
  end
  for _, line in ipairs(losses(s)) do lines[#lines + 1] = line end
  return table.concat(lines, "\n")
end

local rotate_ca = {
  name = "rotate-ca",
  summary = "Replace the CA while everything runs",
  description = [[
Makes a new CA, has every node trust it, renews every certificate, and drops the old CA. It goes on
by itself in the background; --status says how far it is and for whom it waits. With the old CA end
the join tokens that were made before, and the client certificates that it signed: with
--wait-clients only when each of these has been issued anew, was revoked or has expired.

Example:
  symphony cluster rotate-ca
  symphony cluster rotate-ca --status]],
  args = function(parser)
    parser:flag("--status", "Only say how far it is.")
    parser:flag("--wait-clients", "Keep the old CA for as long as a client certificate is of it.")
    parser:flag("-y --yes", "Do not ask.")
  end,
  run = function(ctx)
    local rotation, state = require "symphony.cluster.ca_rotation", require "symphony.cluster.state"
    if ctx.args.status then
      local fresh, err = state.read { stale = true }
      if not fresh then return nil, err end
      require("symphony.cli.stale").note(ctx, fresh)
      local s = rotation.status()
      s.stale = fresh.stale or nil
      return s, { text = status_text }
    end
    local question = "A new CA takes the place of the cluster's. Join tokens and client certificates of the old one "
      .. "are void at the end. Go on?"
    if not ctx.confirm(question) then
      return nil, errors.new("canceled", "nothing was changed", "say yes to the question, or --yes where nobody can")
    end
    local started, err = rotation.begin { wait_clients = ctx.args.wait_clients or false }
    if not started then return nil, err end
    local s = rotation.status()
    s.started = started.started
    return s, { text = function()
      local lines = { started.started and "The change of the CA has begun, and goes on by itself." or
        "A change of the CA is under way already." }
      for _, line in ipairs(losses(s)) do lines[#lines + 1] = line end
      lines[#lines + 1] = "`symphony cluster rotate-ca --status` says how far it is."
      return table.concat(lines, "\n")
    end }
  end,
}

return { name = "cluster", summary = "Backup and restore, the CA, the gossip key", commands = { backup, restore,
  rotate_ca, (require "symphony.cli.gossip_key") } }
