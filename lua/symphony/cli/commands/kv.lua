-- symphony kv ...: the users' own keys.
local errors = require "symphony.errors"
local plan = require "symphony.cli.plan"
local stale = require "symphony.cli.stale"

local LIST_BYTES = 8 << 20   -- of keys and values in one answer
local DEFAULT_LIMIT = 1000
local PAUSE_BYTES = 1 << 20  -- looked at in one turn of the loop
local BACKLOG_MAX = 16 << 20 -- of events that the reader has not taken

-- A key for a URL: every byte but unreserved ones and inner slashes percent-encoded.
local function encode_key(key)
  return (key:gsub("[^%w%-%._~/]", function(c) return ("%%%02X"):format(c:byte()) end):gsub("^/", "%%2F"))
end

local function mark(row, fresh)
  if fresh.stale then row.stale, row.reason, row.revision = true, fresh.reason, fresh.revision end
  return row
end

-- A removed manager's or an idle daemon's own word is better than that there is nothing here.
local function explain(ctx, err)
  if err.code == "closed" then
    local _, why = ctx.call("GET", "/v1/status")
    if errors.is(why) and why.code ~= "closed" then return why end
  end
  return err
end

local put = {
  name = "put",
  summary = "Set a key",
  description = [[
Sets KEY to VALUE: text, - for standard input, or the contents of a file. --plan writes nothing and
shows what the policies would say to it.

Example:
  symphony kv put motd 'back at noon'
  gzip -c big | symphony kv put blob -
  symphony kv put config --file app.conf
  symphony kv put config --file app.conf --plan]],
  where = "client",
  args = function(parser)
    parser:argument("key", "At most 1 KiB."):argname("KEY")
    parser:argument("value", "At most 1 MiB; - reads standard input."):args("?"):argname("VALUE")
    parser:option("--file", "Take the value from this file."):argname("FILE")
    parser:option("--if-revision", "Only if the key's mod_revision is this; 0: only if there is no such key.")
      :argname("N"):convert(function(text)
        local n = math.tointeger(tonumber(text))
        if not n or n < 0 then return nil, ("'%s' is no revision"):format(text) end
        return n
      end)
    parser:flag("--plan", "Write nothing; show what would become of it, and which policies say what.")
  end,
  run = function(ctx)
    local kv, values = require "symphony.cluster.kv", require "symphony.cluster.values"
    local args = ctx.args
    if (args.value == nil) == (args.file == nil) then
      errors.raise("usage", "give one of VALUE, - and --file FILE", "symphony help kv put shows how it is used")
    end
    kv.check_key(args.key)
    local value
    if args.file then
      local text, err = require("sym.sys").read_file(args.file, 64 << 20)
      if not text then return nil, errors.new(err.code, "cannot read the value: " .. err.message) end
      value = text
    elseif args.value == "-" then
      value = io.read(kv.VALUE_MAX + 1) or ""
    else
      value = args.value
    end
    kv.check_value(value)
    if args.plan then
      local op = values.put_bytes(values.put_bytes({}, "put", args.key), "value", value)
      return plan.ask(ctx, "POST", "/v1/txn?plan=true", { ops = { op } })
    end
    local path = "/v1/kv/" .. encode_key(args.key)
    if args.if_revision then path = path .. "?mod_revision=" .. args.if_revision end
    local answer, err = ctx.call("PUT", path, value, { ctype = "application/octet-stream" })
    if not answer then return nil, explain(ctx, err) end
    return values.put_bytes({ revision = answer.revision, policies = answer.policies }, "key", args.key), {
      text = function() return ("revision %d%s"):format(answer.revision, plan.amended(answer)) end,
    }
  end,
}

local get = {
  name = "get",
  summary = "Show a key's value",
  reads = true,
  description = [[
Prints the value of KEY as it is. Without a quorum it is this manager's own, and a note says so.

Example:
  symphony kv get motd
  symphony --json kv get motd]],
  args = function(parser)
    parser:argument("key", "The key."):argname("KEY")
  end,
  run = function(ctx)
    local kv, state = require "symphony.cluster.kv", require "symphony.cluster.state"
    kv.check_key(ctx.args.key)
    local fresh, err = state.read { stale = true }
    if not fresh then return nil, err end
    local value, row = state.text(kv.PREFIX .. ctx.args.key)
    if not value then
      if row then return nil, row end
      if fresh.stale and fresh.revision == 0 then
        return nil, errors.new("state_unknown",
          "this manager has not caught up with the cluster yet, and there is no quorum")
      end
      stale.note(ctx, fresh)
      local missing = errors.new("not_found", ("there is no key %s"):format(ctx.args.key),
        fresh.stale and "this is this manager's own state: it may be behind" or nil)
      missing.stale = fresh.stale
      return nil, missing
    end
    stale.note(ctx, fresh)
    if not ctx.json then
      ctx.out(value)
      if ctx.client.tty and value:sub(-1) ~= "\n" then ctx.out("\n") end
    end
    return mark(kv.shown(row), fresh), { text = function() return "" end }
  end,
}

-- A word for a shell, which can be pasted whatever is in it.
local function quote(text)
  if text:find("^[%w%._/:@%%+=,-]+$") then return text end
  if utf8.len(text) and not text:find("[%c\127]") then return "'" .. text:gsub("'", "'\\''") .. "'" end
  return "$'" .. text:gsub("[%c\127-\255'\\]", function(c) return ("\\x%02x"):format(c:byte()) end) .. "'"
end

-- The command that goes on behind @after.
local function next_page(prefix, limit, after)
  local words = { "symphony kv ls" }
  if limit ~= DEFAULT_LIMIT then words[#words + 1] = "--limit " .. limit end
  words[#words + 1] = (after:sub(1, 1) == "-" and "--after=" or "--after ") .. quote(after)
  if prefix ~= "" then words[#words + 1] = (prefix:sub(1, 1) == "-" and "-- " or "") .. quote(prefix) end
  return table.concat(words, " ")
end

local ls = {
  name = "ls list",
  summary = "List keys",
  reads = true,
  description = [[
Lists the keys that begin with PREFIX, in order: at most --limit of them and 8 MiB. When there are
more, a note on standard error has the command that goes on.

Example:
  symphony kv ls
  symphony kv ls app/ --limit 10]],
  args = function(parser)
    parser:argument("prefix", "Their beginning (default: all)."):args("?"):argname("PREFIX")
    parser:option("--limit", "At most so many (default 1000)."):argname("N"):default(tostring(DEFAULT_LIMIT))
      :show_default(false)
      :convert(function(text)
        local n = math.tointeger(tonumber(text))
        if not n or n < 1 or n > 10000 then return nil, ("'%s' is no number from 1 to 10000"):format(text) end
        return n
      end)
    parser:option("--after", "Go on behind this key."):argname("KEY")
  end,
  run = function(ctx)
    local kv, state = require "symphony.cluster.kv", require "symphony.cluster.state"
    local prefix = kv.check_key(ctx.args.prefix or "", true)
    local fresh, err = state.read { stale = true }
    if not fresh then return nil, err end
    local rows, more = state.list_raw(kv.PREFIX .. prefix, { limit = ctx.args.limit, bytes = LIST_BYTES,
      after = ctx.args.after and kv.PREFIX .. kv.check_key(ctx.args.after) or nil })
    if not rows then return nil, more end
    stale.note(ctx, fresh)
    local out, bytes, seen = require("symphony.json").array {}, {}, 0
    for i, row in ipairs(rows) do
      out[i] = mark(kv.shown(row), fresh)
      bytes[out[i]] = #row.value
      seen = seen + #row.value + 256
      if seen > PAUSE_BYTES then
        ctx.pause()
        seen = 0
      end
    end
    local note = more and ("there are more keys than these %d: %s\n"):format(#rows,
      next_page(prefix, ctx.args.limit, rows[#rows].key:sub(#kv.PREFIX + 1)))
    return out, {
      columns = { "KEY", "BYTES", "CREATED", "MODIFIED" },
      row = function(item)
        return { item.key or "(base64) " .. item.key_base64, bytes[item], item.create_revision, item.mod_revision }
      end,
      empty = "There are no such keys.",
      note = note,
    }
  end,
}

-- Deletes @key, which has to be there: what writes.change answers; nil, err.
local function remove(key)
  local kv, state = require "symphony.cluster.kv", require "symphony.cluster.state"
  local writes = require "symphony.policy.writes"
  local who = require("symphony.cluster.leader").here()
  while true do
    local fresh, err = state.read()
    if not fresh then return nil, err end
    local value, row = state.text(kv.PREFIX .. key)
    if not value then return nil, row or errors.new("not_found", ("there is no key %s"):format(key)) end
    local answer
    answer, err = writes.change({ compare = { state.unchanged(row) }, ops = { state.delete(row.key) } }, who)
    if answer then return answer end
    -- Somebody has changed it meanwhile: then that is deleted.
    local now = err.code == "conflict" and state.read() and select(2, state.text(row.key))
    if err.code ~= "conflict" or (now and now.mod_revision == row.mod_revision) then return nil, err end
  end
end

local rm = {
  name = "rm delete",
  summary = "Delete a key",
  description = [[
Deletes KEY. --plan writes nothing and shows what the policies would say to it.

Example:
  symphony kv rm motd
  symphony kv rm --plan motd]],
  args = function(parser)
    parser:argument("key", "The key."):argname("KEY")
    parser:flag("--plan", "Write nothing; show what would become of it, and which policies say what.")
  end,
  run = function(ctx)
    local kv, values = require "symphony.cluster.kv", require "symphony.cluster.values"
    local key = kv.check_key(ctx.args.key)
    local answer, err
    if ctx.args.plan then
      answer, err = require("symphony.cluster.leader").call("POST", "/v1/txn?plan=true",
        { ops = { values.put_bytes({}, "delete", key) } })
      if not answer then return nil, err end
      return answer, plan.how
    end
    answer, err = remove(key)
    if not answer then return nil, err end
    return values.put_bytes({ revision = answer.revision }, "key", key), { text = function()
      return ("revision %d"):format(answer.revision)
    end }
  end,
}

-- What is shown of an event of the store.
local function shown_event(e)
  local kv, values = require "symphony.cluster.kv", require "symphony.cluster.values"
  local event = values.put_bytes({ type = e.deleted and "delete" or "put", revision = e.revision }, "key",
    e.key:sub(#kv.PREFIX + 1))
  if not e.deleted then
    values.put_bytes(event, "value", e.value)
    event.create_revision = e.create_revision
  end
  return event, #e.key + #(e.value or "")
end

local function event_text(event)
  event.key = event.key or "(base64) " .. event.key_base64
  if event.type == "delete" then return ("%d delete %s\n"):format(event.revision, event.key) end
  return ("%d put %s %s\n"):format(event.revision, event.key, event.value or "(base64) " .. event.value_base64)
end

-- Why a watch is over, and what to do; @last: the revision of the last event that was shown.
local function ended(err, last)
  local hint
  if err.code == "compacted" then
    hint = "changes were missed: `symphony kv ls` shows what is there now; then watch again"
  elseif err.code == "busy" and last then
    hint = ("changes behind revision %d were not shown: `--from %d` goes on there"):format(last, last)
  end
  return errors.new(err.code, err.message or "the watch has ended", hint)
end

local watch = {
  name = "watch",
  summary = "Show changes of keys as they happen",
  reads = true,
  description = [[
Prints each change below PREFIX until Ctrl-C; with --json one object a line. Without a quorum nothing changes: that is
an error, or, with --wait, a note ({"type": "stale", ...} with --json), and the changes come when there is one again.

Example:
  symphony kv watch app/
  symphony --json kv watch --from 120]],
  args = function(parser)
    parser:argument("prefix", "The keys' beginning (default: all)."):args("?"):argname("PREFIX")
    parser:option("--from", "Begin with the changes of this revision (default: with the next)."):argname("REVISION")
      :convert(function(text)
        local n = math.tointeger(tonumber(text))
        if not n or n < 1 then return nil, ("'%s' is no revision"):format(text) end
        return n
      end)
    parser:flag("--wait", "Also when there is no quorum now.")
  end,
  run = function(ctx)
    local follow, json, store = require "symphony.cluster.follow", require "symphony.json", require "sym.store"
    local kv, state = require "symphony.cluster.kv", require "symphony.cluster.state"
    local prefix = kv.check_key(ctx.args.prefix or "", true)
    local fresh, err = state.read { stale = ctx.args.wait }
    if not fresh then
      if err.code == "no_quorum" then err.hint = "`--wait` watches until there is one again; " .. err.hint end
      return nil, err
    end
    stale.note(ctx, fresh)
    if fresh.stale and ctx.json then
      ctx.out(json.encode { type = "stale", reason = fresh.reason, revision = fresh.revision } .. "\n")
    end
    local f <close>, why = follow.open(kv.PREFIX .. prefix, ctx.args.from and ctx.args.from - 1 or store.revision(),
      BACKLOG_MAX, shown_event)
    if not f then
      return nil, errors.new(why.code, why.message, why.code == "compacted" and
        "the history does not reach back that far: `symphony kv ls`, then watch from now" or nil)
    end
    local last
    while true do
      local event, revision = f:pop()
      if event then
        last = revision
        ctx.out(ctx.json and json.encode(event) .. "\n" or event_text(event))
      elseif f.failed then
        return nil, ended(f.failed, last)
      else
        f.changed:wait()
      end
    end
  end,
}

return { name = "kv", summary = "The users' own keys: put, get, rm, ls, watch", commands = { put, get, rm, ls, watch } }
