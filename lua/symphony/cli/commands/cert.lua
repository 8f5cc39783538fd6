-- symphony cert ...: certificates for people and programs. A key is made where the command is typed, and stays there.
local errors = require "symphony.errors"
local stale = require "symphony.cli.stale"

local PRIVATE, PUBLIC, FOLDER = tonumber("600", 8), tonumber("644", 8), tonumber("700", 8)

local function write(path, text, mode)
  local ok, err = require("sym.sys").write_file(path, text, mode)
  if not ok then error(errors.new(err.code, ("cannot write %s: %s"):format(path, err.message)), 0) end
end

-- For a shell.
local function quoted(text)
  return text:find("[^%w%./_:@%%+,-]") and "'" .. text:gsub("'", "'\\''") .. "'" or text
end

local function issued_text(a)
  local values, sys = require "symphony.cluster.values", require "sym.sys"
  return ("Certificate %s, role %s, expires %s. Its key is in %s.\n\n  curl --cacert %s --cert %s --key %s \\\n"
    .. "    https://%s/v1/status"):format(a.name, a.role, values.format_expiry(a.expires, sys.now()), a.files.key,
    quoted(a.files.ca), quoted(a.files.certificate), quoted(a.files.key), a.managers[1] or "HOST:27242")
end

local issue = {
  name = "issue",
  summary = "Make a key and a certificate for a person or a program",
  description = [[
Makes a key and has the cluster sign a certificate for it, with which a person or a program uses the
remote port of the managers: as reader it reads, as operator it also writes keys. Writes NAME.key
(mode 0600), NAME.crt and ca.crt into DIR. The key does not leave this machine. The certificate is
worth something until it expires, or `symphony cert revoke` is said.

Example:
  symphony cert issue prometheus --role reader --ttl 90d --out /etc/prometheus/symphony
  symphony cert issue anna --role operator]],
  where = "client",
  complete = { role = { "reader", "operator" } },
  args = function(parser)
    parser:argument("name", "Its name."):argname("NAME")
    parser:option("--role", "reader or operator."):argname("ROLE"):count(1)
    parser:option("--ttl", "How long it is good: 90s, 12h, 30d (default), at most 730d."):argname("TIME")
    parser:option("--out", "The folder for the files (default: the current one)."):argname("DIR")
    parser:flag("--force", "Also when the files or a certificate of this name are there: they are replaced.")
  end,
  run = function(ctx)
    local crypto, sys = require "sym.crypto", require "sym.sys"
    local values = require "symphony.cluster.values"
    local args, ttl = ctx.args, nil
    local ok, err = values.check_name(args.name) -- it becomes the name of files
    if ok and args.ttl then ttl, err = values.parse_duration(args.ttl) end
    if ttl == false then err = errors.new("invalid", "a client certificate has to expire", "at most --ttl 730d") end
    if err then return nil, err end
    local dir, made = args.out or ".", false
    if args.out then
      made = not sys.stat(dir)
      ok, err = sys.mkdir(dir, FOLDER)
      if not ok then return nil, errors.new(err.code, ("cannot make %s: %s"):format(dir, err.message)) end
    end
    local base = args.out and (dir:gsub("/+$", "")) .. "/" or ""
    local files = { key = base .. args.name .. ".key", certificate = base .. args.name .. ".crt",
      ca = base .. "ca.crt" }
    if sys.stat(files.key) and not args.force then
      return nil, errors.new("exists", files.key .. " is there already",
        "choose another name or --out; --force replaces the key and makes its certificate void")
    end
    local key = crypto.key_generate()
    local answer
    answer, err = ctx.call("POST", "/v1/certs", { name = args.name, role = args.role, ttl = ttl or nil,
      csr = crypto.csr(key, args.name), replace = args.force or false }, { timeout_ms = 15000 })
    if not answer then
      if made then os.remove(dir) end
      return nil, err
    end
    local written, failed = pcall(function()
      write(files.key, key:pem(), PRIVATE)
      write(files.certificate, answer.certificate, PUBLIC)
      write(files.ca, answer.ca, PUBLIC)
    end)
    if not written then
      failed = errors.from(failed)
      return nil, errors.new(failed.code, failed.message .. "; the certificate is issued, but lost",
        "see to it that the folder can be written, then say it again with --force")
    end
    answer.certificate, answer.ca, answer.files = nil, nil, files
    return answer, { text = issued_text }
  end,
}

local ls = {
  name = "ls list",
  summary = "List the certificates of people and programs",
  description = [[
Lists the client certificates that are good, and those that expired in the last day. CA is "old"
beside one that the cluster's new CA has not signed, while the CA is being replaced.

Example:
  symphony cert ls]],
  run = function(ctx)
    local state, sys = require "symphony.cluster.state", require "sym.sys"
    local fresh, err = state.read { stale = true }
    if not fresh then return nil, err end
    local rows
    rows, err = require("symphony.cluster.certs").list()
    if not rows then return nil, err end
    stale.note(ctx, fresh)
    local values = require "symphony.cluster.values"
    for _, row in ipairs(rows) do row.stale = fresh.stale or nil end
    return require("symphony.json").array(rows), {
      columns = { "NAME", "ROLE", "ISSUED", "EXPIRES", "CA", "SERIAL" },
      row = function(c)
        return { c.name, c.role, os.date("!%Y-%m-%d %H:%M", c.issued), values.format_expiry(c.expires, sys.now()),
          c.current_ca and "current" or "old", c.serial }
      end,
      empty = "There is no client certificate: `symphony cert issue` makes one.",
    }
  end,
}

local revoke = {
  name = "revoke rm",
  summary = "Make a certificate of a person or a program void",
  description = [[
From now on the certificate is refused everywhere, and what goes on with it is cut off.

Example:
  symphony cert revoke anna]],
  complete = { name = "client" },
  args = function(parser)
    parser:argument("name", "Its name, as `cert ls` shows it."):argname("NAME")
  end,
  run = function(ctx)
    local answer, err = require("symphony.cluster.certs").revoke(ctx.args.name)
    if not answer then return nil, err end
    return answer, { text = function() return ("The certificate %s is revoked."):format(answer.name) end }
  end,
}

return { name = "cert", summary = "Certificates for people and programs", commands = { issue, ls, revoke } }
