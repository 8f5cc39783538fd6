--- The policies in the replicated state: what is set, changed, switched off and gone back to. On the leader, in a task.
---
--- /policy/<name>: {name, source, sha256, enabled, version, set_at (unix seconds), set_by, reason (why it is disabled),
--- about = what it says of itself (match.check_about)}; /policy-history/<name>/<version, 10 digits>: the versions
--- before. Every change is one txn with its event.
local crypto = require "sym.crypto"
local engine = require "symphony.policy.engine"
local errors = require "symphony.errors"
local events = require "symphony.cluster.events"
local json = require "symphony.json"
local log = require "sym.log"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"
local check_name = require("symphony.policy.name").check
local why_failed = require("symphony.policy.cases").why_failed

local M = {}

M.PREFIX, M.HISTORY = "/policy/", "/policy-history/"
M.MAX = 64               -- policies
M.KEEP = 20              -- versions before the present one
M.SOURCE_MAX = 64 << 10  -- bytes
local SHOWN = 3          -- cases that an error tells of

--- @source, if it can be one: 1 to SOURCE_MAX bytes of UTF-8. Raises.
function M.check_source(source)
  if type(source) ~= "string" then errors.raise("invalid", "the source of a policy is a text") end
  if source == "" then errors.raise("invalid", "the policy is empty") end
  if #source > M.SOURCE_MAX then
    errors.raise("too_big", ("the policy has %d bytes; at most %d fit"):format(#source, M.SOURCE_MAX))
  end
  if not utf8.len(source) then errors.raise("invalid", "the source of a policy is UTF-8") end
  return source
end

local function key(name) return M.PREFIX .. name end
local function history_prefix(name) return M.HISTORY .. name .. "/" end
local function history_key(name, version) return history_prefix(name) .. ("%010d"):format(version) end

local function missing(name)
  return errors.new("not_found", ("there is no policy %s"):format(json.clean(name:sub(1, 80))),
    "`symphony policy ls` lists them")
end

-- The record of the policy @name and its kv, from local state. Raises.
local function find(name)
  check_name(name)
  local record, kv = state.get(key(name))
  if not record then error(kv or missing(name), 0) end
  return record, kv
end

--- A record as it is shown: without its source, unless @source.
function M.shown(record, source)
  local about = record.about or {}
  return { name = record.name, summary = about.summary, order = about.order, hooks = json.array(about.hooks or {}),
    match = about.match, enabled = record.enabled, reason = record.reason, version = record.version,
    sha256 = record.sha256, set_at = record.set_at, set_by = record.set_by, source = source and record.source or nil }
end

--- All of them from local state, in the order in which they run; broken: why this manager's sandbox has not got one.
--- nil, err.
function M.ls()
  local rows, err = state.list(M.PREFIX)
  if not rows then return nil, err end
  local out, broken = json.array {}, engine.broken()
  for i, kv in ipairs(rows) do
    out[i] = M.shown(kv.value)
    out[i].broken = broken[kv.value.name]
  end
  table.sort(out, function(a, b)
    local x, y = a.order or 0, b.order or 0
    if x ~= y then return x < y end
    return a.name < b.name
  end)
  return out
end

-- Version @version of the policy @name out of its history. Raises.
local function earlier(name, version)
  if math.type(version) ~= "integer" or version < 1 then errors.raise("invalid", "a version is a whole number") end
  local old, err = state.get(history_key(name, version))
  if old then return old end
  error(err or errors.new("not_found", ("policy %s has no version %d, or no longer"):format(name, version),
    ("`symphony policy history %s` lists those that are kept"):format(name)), 0)
end

--- One, with its source; @version: an earlier one, also of one that was removed. Raises.
function M.show(name, version)
  local record, err = state.get(key(check_name(name)))
  if not record and err then error(err, 0) end
  if version and not (record and record.version == version) then return M.shown(earlier(name, version), true) end
  local shown = M.shown(record or error(missing(name), 0), true)
  shown.broken = engine.broken()[name]
  return shown
end

-- What stops a policy from being taken: the cases of its own that fail. Raises.
local function check_cases(cases)
  local failed, lines = 0, {}
  for _, case in ipairs(cases) do
    if not case.ok then
      failed = failed + 1
      if failed <= SHOWN then
        lines[#lines + 1] = ("%s: %s"):format(case.name, why_failed(case))
      end
    end
  end
  if failed == 0 then return end
  errors.raise("invalid", ("%d of %d cases of its selftest fail\n%s"):format(failed, #cases,
    table.concat(lines, "\n")), "`symphony policy test FILE` shows them all")
end

-- What the policy @source says of itself, once it has passed its own test. @what: which it is, when it is not the one
-- that was given. Raises.
local function approved(source, what)
  local ok, about = pcall(function()
    local tested = assert(engine.test(source))
    check_cases(tested.cases)
    return tested.about
  end)
  if ok then return about end
  error(what and errors.is(about) and errors.wrap(about, what) or about, 0)
end

-- Versions are never used twice, also not by a policy that was removed and is set again.
local function last_version(name, record)
  local rows = assert(state.list_raw(history_prefix(name)))
  local last = rows[#rows] and math.tointeger(tonumber(rows[#rows].key:match("%d+$"), 10)) or 0
  return math.max(last, record and record.version or 0), rows
end

-- Puts the present version into the history, which is kept short. @rows: the history.
local function keep(txn, record, rows)
  local old = { name = record.name, source = record.source, sha256 = record.sha256, version = record.version,
    enabled = record.enabled, set_at = record.set_at, set_by = record.set_by, about = record.about }
  table.insert(txn.ops, state.put(history_key(record.name, record.version), old))
  for i = 1, #rows + 1 - M.KEEP do table.insert(txn.ops, state.delete(rows[i].key)) end
end

local function tell(txn, kind, name, message, more)
  local event = { kind = kind, policy = name, message = message }
  for k, v in pairs(more or {}) do event[k] = v end
  events.add(txn, event)
end

-- state.update for @build() -> txn, answer; and this manager's own set of policies follows at once. Raises.
local function change(build)
  local answer = assert(state.update(build))
  engine.changed()
  if answer.said then log.info("policy: " .. answer.said) end
  return answer.shown
end

-- Makes @source the next version of the policy @name. @opts: by; said(version) -> what the event says; enabled: when it
-- is new.
local function put_version(name, source, about, opts)
  local sha256 = crypto.hex(crypto.sha256(source))
  return change(function()
    local record, kv = state.get(key(name))
    if not record and kv then error(kv, 0) end
    if record and record.sha256 == sha256 and (record.enabled or not opts.enabled) then
      local shown = M.shown(record)
      shown.unchanged = true
      return nil, { shown = shown }
    end
    local last, rows = last_version(name, record)
    local txn = { compare = { record and state.unchanged(kv) or state.absent(key(name)) }, ops = {} }
    if record then
      keep(txn, record, rows)
    else
      local count = #assert(state.list_raw(M.PREFIX, { limit = M.MAX }))
      if count >= M.MAX then
        errors.raise("too_big", ("there are %d policies already"):format(count), "`symphony policy rm` removes one")
      end
      table.insert(txn.compare, { prefix = M.PREFIX, count = count })
    end
    local fresh = { name = name, source = source, sha256 = sha256, enabled = true, version = last + 1,
      set_at = math.floor(sys.now()), set_by = opts.by, about = about }
    if record and not opts.enabled then fresh.enabled, fresh.reason = record.enabled, record.reason end
    table.insert(txn.ops, state.put(key(name), fresh))
    local said = opts.said(fresh.version)
    tell(txn, "policy.set", name, said, { version = fresh.version })
    return txn, { shown = M.shown(fresh), said = said }
  end)
end

--- Sets the policy @name to @source, which has to load and to pass its selftest; it is enabled. @by: who does, in
--- words. Returns it as shown, with unchanged = true when it is so already. Raises.
function M.set(name, source, by)
  check_name(name)
  local about = approved(M.check_source(source))
  return put_version(name, source, about, { by = by, enabled = true, said = function(version)
    return ("policy %s version %d is set by %s"):format(name, version, by)
  end })
end

--- Goes back to @version of the policy @name (nil: the one before), whose source becomes a new version; one that was
--- removed is there again, enabled. Returns it as shown, with back_to = @version. Raises.
function M.rollback(name, version, by)
  local record, err = state.get(key(check_name(name)))
  if not record and err then error(err, 0) end
  if version == nil then
    local rows = assert(state.list(history_prefix(name)))
    local before = rows[#rows]
    if not before then
      error(record and errors.new("not_found", ("policy %s has no version before this one"):format(name))
        or missing(name), 0)
    end
    version = before.value.version
  end
  if record and version == record.version then
    errors.raise("invalid", ("version %d is the present one"):format(version))
  end
  local old = earlier(name, version)
  local about = approved(old.source, ("version %d of policy %s"):format(version, name))
  local shown = put_version(name, old.source, about, { by = by, said = function(fresh)
    return ("policy %s goes back to version %d, as version %d, by %s"):format(name, version, fresh, by)
  end })
  shown.back_to = version
  return shown
end

--- Removes the policy @name; its versions stay in its history. Raises.
function M.rm(name, by)
  return change(function()
    local record, kv = find(name)
    local _, rows = last_version(name, record)
    local txn = { compare = { state.unchanged(kv) }, ops = { state.delete(kv.key) } }
    keep(txn, record, rows)
    local said = ("policy %s is removed by %s"):format(name, by)
    tell(txn, "policy.removed", name, said)
    return txn, { shown = M.shown(record), said = said }
  end)
end

local function switch(name, enabled, fields, said)
  return change(function()
    local record, kv = find(name)
    local other = fields.version and record.version ~= fields.version
    if record.enabled == enabled or other then
      local shown = M.shown(record)
      shown.unchanged = true
      return nil, { shown = shown }
    end
    record.enabled, record.reason = enabled, fields.reason
    if fields.about then record.about = fields.about end
    local txn = { compare = { state.unchanged(kv) }, ops = { state.put(kv.key, record) } }
    tell(txn, enabled and "policy.enabled" or "policy.disabled", name, said, { reason = fields.reason,
      version = record.version })
    return txn, { shown = M.shown(record), said = said }
  end)
end

--- Has the policy @name run again, if it loads and passes its selftest. Raises.
function M.enable(name, by)
  local record = find(name)
  return switch(name, true, { about = approved(record.source, "policy " .. name), version = record.version },
    ("policy %s is enabled by %s"):format(name, by))
end

--- Has the policy @name not run any more. @reason: text or nil. Raises.
function M.disable(name, by, reason)
  return switch(name, false, { reason = reason }, ("policy %s is disabled by %s%s"):format(name, by,
    reason and ": " .. reason or ""))
end

--- Version @version of the policy @name has failed too often. Raises.
function M.give_up(name, version, reason)
  return switch(name, false, { reason = reason, version = version },
    ("policy %s is disabled: %s"):format(name, reason))
end

--- The versions of the policy @name that are kept, the newest first; the present one, if there is one, is marked. Also
--- of one that was removed. Raises.
function M.history(name)
  check_name(name)
  local record, err = state.get(key(name))
  if not record and err then error(err, 0) end
  local rows = assert(state.list(history_prefix(name)))
  local out = json.array {}
  if record then
    out[1] = M.shown(record)
    out[1].current = true
  end
  for i = #rows, 1, -1 do out[#out + 1] = M.shown(rows[i].value) end
  if #out == 0 then error(missing(name), 0) end
  return out
end

return M
